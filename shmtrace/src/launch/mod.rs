//! Starting a command so that everything about it is settled before its first instruction: who it runs as, how much
//! memory it may use, and who watches it.
//!
//! [`Plan::hold`] makes the process and holds it before `exec`; [`Held::release`] lets it go. In between it can be
//! traced, and it is limited already. Should this program die meanwhile, the held process ends without having run.
//!
//! ```text
//!   hold:     fork -> [child: report pid, become the user, wait at the gate] ; limit the child
//!   release:  open the gate -> [child: exec] ; learn from exec whether it worked
//! ```

mod account;
mod limit;
mod size;
mod spawn;

use std::{
    ffi::OsString,
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::{Child, ExitStatus},
    thread::JoinHandle,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use thiserror::Error;

pub use account::Account;
pub use limit::{Limited, NoLimit, Way, ways};
pub use size::{MemoryMax, parse_memory_max};

/// Why a command was not started.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// There is no such program.
    #[error("cannot run {program}: no such program (see `type -a {program}`)")]
    NotFound {
        /// The program.
        program: String,
    },
    /// It cannot be executed.
    #[error("cannot run {program}: {source}")]
    NotExecutable {
        /// The program.
        program: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// No memory limit can be had.
    #[error(transparent)]
    NoLimit(#[from] NoLimit),
    /// The process could not be made.
    #[error("cannot make a process: {0}")]
    Fork(#[source] io::Error),
}

/// What to start and how.
#[derive(Debug)]
pub struct Plan {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// How much memory the tree may use.
    pub memory_max: MemoryMax,
    /// Whom to run it as; `None` = as this process.
    pub account: Option<Account>,
    /// Signals that the command is to have blocked, where they are not those of this thread.
    pub signal_mask: Option<SignalMask>,
}

/// A set of blocked signals.
#[derive(Clone, Copy)]
pub struct SignalMask(pub libc::sigset_t);

impl fmt::Debug for SignalMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SignalMask")
    }
}

/// A process that waits before `exec`.
#[derive(Debug)]
pub struct Held {
    pid: u32,
    pidfd: OwnedFd,
    program: String,
    gate: OwnedFd,
    spawner: JoinHandle<io::Result<Child>>,
    limited: Option<Limited>,
}

/// A command that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pidfd: OwnedFd,
    limited: Option<Limited>,
}

impl Plan {
    /// Makes the process, limits it, and holds it before its first instruction.
    pub fn hold(self) -> Result<Held, LaunchError> {
        let program = self
            .command
            .first()
            .map_or_else(String::new, |word| word.display().to_string());
        let spawn::Spawned { pid, gate, spawner } =
            spawn::hold(self.command, self.account, self.signal_mask)?;
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or_else(|| LaunchError::Fork(io::ErrorKind::InvalidData.into()))?;
        // Our own child, not waited for: the pid is still its.
        let pidfd =
            pidfd_open(raw, PidfdFlags::empty()).map_err(|e| LaunchError::Fork(e.into()))?;
        let limited = match self.memory_max {
            MemoryMax::Unlimited => None,
            MemoryMax::Bytes(bytes) => Some(limit::limit(pid, bytes)?),
        };
        Ok(Held {
            pid,
            pidfd,
            program,
            gate,
            spawner,
            limited,
        })
    }
}

impl Held {
    /// Its pid, which stays the same after `exec`.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How its memory is limited.
    pub fn limited(&self) -> Option<&Limited> {
        self.limited.as_ref()
    }

    /// Ends it before it has run.
    pub fn abandon(self) {
        drop(self.gate);
        // Waits for the child, so that its cgroup is empty when it is removed.
        let _cancelled = self.spawner.join();
    }

    /// Lets it execute the command.
    pub fn release(self) -> Result<Running, LaunchError> {
        rustix::io::write(&self.gate, &[1]).map_err(|e| LaunchError::Fork(e.into()))?;
        drop(self.gate);
        let spawned = self
            .spawner
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that started it died")));
        match spawned {
            Ok(child) => Ok(Running {
                child,
                pidfd: self.pidfd,
                limited: self.limited,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(LaunchError::NotFound {
                program: self.program,
            }),
            Err(source) => Err(LaunchError::NotExecutable {
                program: self.program,
                source,
            }),
        }
    }
}

impl Running {
    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd_send_signal(&self.pidfd, signal) {
            tracing::debug!("cannot send {signal:?} to the command: {error}");
        }
    }

    /// Its status, once it has ended: waits for that.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// How its memory is limited.
    pub fn limited(&self) -> Option<&Limited> {
        self.limited.as_ref()
    }
}

/// Readable when the command has ended.
impl AsFd for Running {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// The exit code that a shell would give: 128 and the signal's number for a command that a signal ended.
pub fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status
        .code()
        .or_else(|| Some(128 + status.signal()?))
        .unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}
