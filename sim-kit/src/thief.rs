//! Takes a token out of another process's doorbell, the way an inherited or duplicated fd would.

use std::io;
use std::os::fd::RawFd;

use rustix::net::RecvFlags;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::child::pid_of;

/// Receives one datagram from `fd` of process `pid` and closes the copy again. `Ok(false)`: nothing was queued.
pub fn steal_token(pid: u32, fd: RawFd) -> io::Result<bool> {
    let process = pidfd_open(pid_of(pid)?, PidfdFlags::empty())?;
    let copy = pidfd_getfd(process, fd, PidfdGetfdFlags::empty())?;
    let mut buffer = [0u8; 64];
    match rustix::net::recv(&copy, &mut buffer, RecvFlags::DONTWAIT) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::AGAIN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
