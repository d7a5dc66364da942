//! The end of another process, as something to wait for.

use std::os::fd::OwnedFd;

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
