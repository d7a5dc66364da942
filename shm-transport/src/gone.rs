//! The end of another process, as something to wait for.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::unix::AsyncFd;

use crate::doorbell::register;
use crate::error::HubError;

/// Becomes ready when a process has ended, and stays so.
#[derive(Debug)]
pub(crate) struct Gone(AsyncFd<OwnedFd>);

impl Gone {
    /// Watches a process that is known to live, or not to be reaped yet.
    pub(crate) fn watch(pid: Pid) -> Result<Self, HubError> {
        let failed = |source| HubError::Watch {
            pid: pid.as_raw_nonzero().get().unsigned_abs(),
            source,
        };
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| failed(error.into()))?;
        register(pidfd).map(Self).map_err(failed)
    }

    /// Returns when the process has ended. Cancel-safe.
    pub(crate) async fn wait(&self) {
        // Readiness is never cleared: the end is final. An error means that the runtime shuts down.
        let _readiness = self.0.readable().await;
    }
}

/// Whether each thread of a process was seen asleep in a system call, or the process has ended: then none is between two
/// instructions of its program. `false` when that cannot be seen.
pub(crate) fn asleep(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        // Ended and reaped; without a /proc nothing is known.
        return Path::new("/proc/self").exists() && !Path::new(&format!("/proc/{pid}")).exists();
    };
    threads.flatten().all(|thread| {
        // A thread that ended meanwhile is in no one's way.
        let Ok(stat) = fs::read_to_string(thread.path().join("stat")) else {
            return true;
        };
        // The name stands in parentheses and may contain any character. S is an interruptible sleep, which only a
        // system call leads to; a page fault (D), a stop (T) and waiting for a processor (R) can be anywhere.
        let state = stat
            .rsplit_once(") ")
            .map(|(_, after)| after.chars().next());
        matches!(state, Some(Some('S' | 'Z' | 'X')))
    })
}
