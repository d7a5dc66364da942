//! Giving up what a watch does not need any more once its probes are attached.
//!
//! What follows reads memory that anybody in the tree can write to, so it is done with few rights: to read what processes
//! of other users show in `/proc`, and nothing else. No new rights can be had, a filter refuses the system calls that
//! nobody here needs, and files cannot be opened for writing. What takes more, now and then, a small process of its own
//! does: see [`helper`].

mod filter;
mod helper;

use std::io;

use anyhow::Context as _;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::limits;

pub use helper::{Helper, as_helper, create_file, diagnostics_in, kernel_stack, open_event};

/// From this version on, tables that are open already take no right to be written to.
const TABLES_ARE_FREE: (u32, u32) = (5, 19);
/// Capabilities that the kernel may have, known by name or not.
const MOST_CAPABILITIES: u32 = 63;

/// What a process does after it has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Watches.
    Watch,
    /// Watches a command of its own, and ends it.
    Run,
    /// Does what takes more rights for one of the above.
    Helper {
        /// Files are among it.
        writes: bool,
    },
}

/// What was kept.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Capabilities.
    pub capabilities: CapabilitySet,
    /// Why there is no filter of system calls, if there is none.
    pub unfiltered: Option<String>,
}

/// What `CAP_BPF` and `CAP_PERFMON` are for is over once the probes are attached.
pub(crate) const TO_ATTACH: CapabilitySet = CapabilitySet::BPF.union(CapabilitySet::PERFMON);
/// Without these, processes of other users are not seen.
pub(crate) const TO_LOOK: CapabilitySet =
    CapabilitySet::SYS_PTRACE.union(CapabilitySet::DAC_READ_SEARCH);

/// Those of `wanted` that this process does not have.
pub(crate) fn missing(wanted: CapabilitySet) -> CapabilitySet {
    let has =
        rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    // The kernel takes CAP_SYS_ADMIN for what was split off from it.
    let split_off = TO_ATTACH | CapabilitySet::CHECKPOINT_RESTORE;
    if has.contains(CapabilitySet::SYS_ADMIN) {
        wanted - has - split_off
    } else {
        wanted - has
    }
}

impl Role {
    /// What it keeps, of what it has.
    pub(crate) fn needs(self) -> CapabilitySet {
        let looks = TO_LOOK | CapabilitySet::CHECKPOINT_RESTORE;
        let tables = match limits::kernel_version() {
            Some(version) if version >= TABLES_ARE_FREE => CapabilitySet::empty(),
            // CAP_BPF came with 5.8.
            _ => CapabilitySet::BPF,
        };
        match self {
            Self::Watch => looks | tables,
            Self::Run => looks | tables | CapabilitySet::KILL,
            Self::Helper { writes } => {
                let files = CapabilitySet::DAC_OVERRIDE | CapabilitySet::CHOWN;
                let see = CapabilitySet::SYS_ADMIN
                    | CapabilitySet::SYS_PTRACE
                    | CapabilitySet::DAC_READ_SEARCH
                    | CapabilitySet::PERFMON;
                see | if writes {
                    files
                } else {
                    CapabilitySet::empty()
                }
            }
        }
    }
}

/// Whether this process has rights that only a helper is to keep.
pub fn helper_is_of_use() -> bool {
    let only_there = CapabilitySet::SYS_ADMIN | CapabilitySet::PERFMON;
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.intersects(only_there))
}

/// Gives up everything that this role does not need, for good: for the calling thread and all that it starts, the filter
/// for all threads.
pub fn give_up(role: Role) -> anyhow::Result<Kept> {
    let keep = drop_capabilities(role.needs()).context("cannot give up capabilities")?;
    rustix::thread::set_no_new_privs(true).context("cannot give up gaining rights")?;
    let filter = filter::program(role).context("the filter of system calls is not valid")?;
    let unfiltered = seccompiler::apply_filter_all_threads(&filter)
        .err()
        .map(|error| error.to_string());
    tracing::info!(
        "{role:?} keeps {}; seccomp: {}",
        in_words(keep),
        unfiltered.as_deref().unwrap_or("filtered")
    );
    Ok(Kept {
        capabilities: keep,
        unfiltered,
    })
}

/// Gives up every capability and the way to new ones; the calls stay as they are.
pub(crate) fn give_up_all() -> io::Result<()> {
    drop_capabilities(CapabilitySet::empty())?;
    Ok(rustix::thread::set_no_new_privs(true)?)
}

fn drop_capabilities(needs: CapabilitySet) -> io::Result<CapabilitySet> {
    let keep = rustix::thread::capabilities(None)?.permitted & needs;
    for number in 0..MOST_CAPABILITIES {
        let one = CapabilitySet::from_bits_retain(1 << number);
        // Takes CAP_SETPCAP; without it nothing can be gained from the set either, as there are no new rights. The
        // kernel says EINVAL to what it does not know.
        if !needs.contains(one)
            && let Err(error) = rustix::thread::remove_capability_from_bounding_set(one)
        {
            tracing::trace!("capability {number} stays in the bounding set: {error}");
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: keep,
            permitted: keep,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(keep)
}

/// Names as people write them: `CAP_SYS_PTRACE, CAP_KILL`.
pub(crate) fn in_words(set: CapabilitySet) -> String {
    let names: Vec<String> = set
        .iter_names()
        .map(|(name, _)| format!("CAP_{name}"))
        .collect();
    if names.is_empty() {
        "no capability".to_owned()
    } else {
        names.join(", ")
    }
}
