//! Sends that come to no socket, since their fd is closed or something else: only their calls' exits tell of them.
//!
//! At the exits of the calls' own functions (`fexit`) this costs nobody else anything. Where these are not let in (some
//! kernels refuse them to root too), there are the classic tracepoints of the calls; while one is attached, every system
//! call of every process takes some 40 ns more. So a tree that makes very many calls is watched without them.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    thread,
};

use aya::{
    Btf, Ebpf,
    programs::{FExit, Program, ProgramError, TracePoint},
};

use super::{
    event::{self, open_event},
    program,
    tracefs::{self, Tracefs},
};
use crate::rights;

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
    /// By the classic tracepoints with these numbers, while their events are open.
    Classic {
        numbers: Vec<u64>,
        events: Vec<OwnedFd>,
    },
    /// Not at all, and why.
    Unseen(String),
}

impl FailedSends {
    /// By the first way that this kernel allows; if they are not `wanted`, only if it costs nobody anything.
    pub(super) fn attach(ebpf: &mut Ebpf, btf: &Btf, wanted: bool) -> Self {
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
        if !wanted {
            return Self::Unseen("as asked for".to_owned());
        }
        let attached = load_classic(ebpf).and_then(|numbers| {
            let events = attach_classic(ebpf, &numbers)?;
            Ok(Self::Classic { numbers, events })
        });
        attached.unwrap_or_else(|e| Self::Unseen(e.to_string()))
    }

    /// Why they are not seen.
    pub(super) fn blind(&self) -> Option<&str> {
        match self {
            Self::Unseen(why) => Some(why),
            Self::ForFree | Self::Classic { .. } => None,
        }
    }

    /// Whether some may be missing, if they were to be done without lately or not.
    pub(super) fn may_miss(&self, lately: bool) -> bool {
        match self {
            Self::ForFree => false,
            Self::Classic { .. } => lately,
            Self::Unseen(_) => true,
        }
    }

    /// Sees them, or not, where not seeing them makes a difference to others.
    pub(super) fn watch(&mut self, ebpf: &mut Ebpf, watch: bool) {
        let Self::Classic { numbers, events } = self else {
            return;
        };
        let watched = !events.is_empty();
        if watch == watched {
            return;
        }
        if !watch {
            // The kernel waits until every CPU is through, up to a tenth of a second, and records go on coming.
            let events = std::mem::take(events);
            drop(thread::spawn(move || drop(events)));
            return;
        }
        match attach_classic(ebpf, numbers) {
            Ok(attached) => *events = attached,
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

/// Loads the program, and looks up where it belongs, since tracefs may not be there for long.
fn load_classic(ebpf: &mut Ebpf) -> Result<Vec<u64>, ProgramError> {
    let program: &mut TracePoint = program(ebpf, CLASSIC)?.try_into()?;
    program.load()?;
    let _mounted = Tracefs::mount_if_missing()?;
    let numbers = AT_EXITS.into_iter().map(|(call, _)| tracefs::number(call));
    Ok(numbers.collect::<io::Result<_>>()?)
}

/// Attaches the program, by events that the helper opens once this process may not any more.
fn attach_classic(ebpf: &mut Ebpf, numbers: &[u64]) -> Result<Vec<OwnedFd>, ProgramError> {
    let program: &mut TracePoint = program(ebpf, CLASSIC)?.try_into()?;
    let program = program.fd()?;
    let mut events = Vec::new();
    for number in numbers {
        let event = open_event(*number).or_else(|_| rights::open_event(*number))?;
        event::run_at(&event, program.as_fd())?;
        events.push(event);
    }
    Ok(events)
}
