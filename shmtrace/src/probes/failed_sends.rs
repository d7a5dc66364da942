//! Sends that come to no socket, since their fd is closed or something else: only their calls' exits tell of them.
//!
//! At the exits of the calls' own functions (`fexit`) this costs nobody else anything. Where these are not let in (some
//! kernels refuse them to root too), there are the classic tracepoints of the calls; while one is attached, every system
//! call of every process takes some 40 ns more. So a tree that makes very many calls is watched without them.

use std::thread;

use aya::{
    Btf, Ebpf,
    programs::{FExit, Program, ProgramError, TracePoint, trace_point::TracePointLink},
};

use super::{program, tracefs::Tracefs};

/// Calls, and the programs at the exits of their functions.
const AT_EXITS: [(&str, &str); 2] = [
    ("sendto", "shmtrace_sendto"),
    ("sendmsg", "shmtrace_sendmsg"),
];
/// The program at their classic tracepoints.
const CLASSIC: &str = "shmtrace_call";

/// What the kernel's entry functions of system calls are called before the call's name.
#[cfg(not(target_arch = "aarch64"))]
const ENTRY_PREFIX: &str = "__x64_sys_";
#[cfg(target_arch = "aarch64")]
const ENTRY_PREFIX: &str = "__arm64_sys_";

/// How they are seen.
#[derive(Debug)]
pub(super) enum FailedSends {
    /// All the time: it costs nothing that is not paid anyway.
    ForFree,
    /// By classic tracepoints, while there are links.
    Classic(Vec<TracePointLink>),
    /// Not at all, and why.
    Unseen(String),
}

impl FailedSends {
    /// By the first way that this kernel allows.
    pub(super) fn attach(ebpf: &mut Ebpf, btf: &Btf) -> Self {
        let refused = match attach_at_exits(ebpf, btf) {
            Ok(()) => return Self::ForFree,
            Err(e) => e,
        };
        tracing::debug!("no programs at the exits of functions: {refused}");
        for (_, name) in AT_EXITS {
            if let Some(Program::FExit(program)) = ebpf.program_mut(name)
                && let Err(e) = program.unload()
            {
                tracing::trace!(program = name, "was not loaded: {e}");
            }
        }
        match load_classic(ebpf).and_then(|()| attach_classic(ebpf)) {
            Ok(links) => Self::Classic(links),
            Err(e) => Self::Unseen(e.to_string()),
        }
    }

    /// Why they are not seen.
    pub(super) fn blind(&self) -> Option<&str> {
        match self {
            Self::Unseen(why) => Some(why),
            Self::ForFree | Self::Classic(_) => None,
        }
    }

    /// Whether some may be missing, if they were to be done without lately or not.
    pub(super) fn may_miss(&self, lately: bool) -> bool {
        match self {
            Self::ForFree => false,
            Self::Classic(_) => lately,
            Self::Unseen(_) => true,
        }
    }

    /// Sees them, or not, where not seeing them makes a difference to others.
    pub(super) fn watch(&mut self, ebpf: &mut Ebpf, watch: bool) {
        let Self::Classic(links) = self else { return };
        let watched = !links.is_empty();
        if watch == watched {
            return;
        }
        if !watch {
            // The kernel waits until every CPU is through, up to a tenth of a second, and records go on coming.
            let links = std::mem::take(links);
            drop(thread::spawn(move || drop(links)));
            return;
        }
        match attach_classic(ebpf) {
            Ok(attached) => *links = attached,
            Err(e) => *self = Self::Unseen(e.to_string()),
        }
    }
}

fn attach_at_exits(ebpf: &mut Ebpf, btf: &Btf) -> Result<(), ProgramError> {
    for (call, name) in AT_EXITS {
        let program: &mut FExit = program(ebpf, name)?.try_into()?;
        program.load(&format!("{ENTRY_PREFIX}{call}"), btf)?;
        program.attach()?;
    }
    Ok(())
}

fn load_classic(ebpf: &mut Ebpf) -> Result<(), ProgramError> {
    let program: &mut TracePoint = program(ebpf, CLASSIC)?.try_into()?;
    program.load()
}

fn attach_classic(ebpf: &mut Ebpf) -> Result<Vec<TracePointLink>, ProgramError> {
    let program: &mut TracePoint = program(ebpf, CLASSIC)?.try_into()?;
    let _mounted = Tracefs::mount_if_missing()?;
    AT_EXITS
        .into_iter()
        .map(|(call, _)| {
            let link = program.attach("syscalls", &format!("sys_exit_{call}"))?;
            program.take_link(link)
        })
        .collect()
}
