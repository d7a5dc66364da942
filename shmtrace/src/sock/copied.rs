//! The queue of a socket through a copy of its owner's fd, for kernels without `unix_diag`.

use std::io;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::process::Process;

/// Bytes of the first datagram queued on fd `fd` of `process`; 0 = none.
///
/// The copy lives for this one look only.
pub fn pending_through_copy(process: &Process, fd: u32) -> io::Result<u64> {
    let pid = i32::try_from(process.id().pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(io::ErrorKind::NotFound)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    // The pidfd could be that of a later process with the same pid.
    if !process.is_alive() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let copy = pidfd_getfd(&pidfd, fd.cast_signed(), PidfdGetfdFlags::empty())?;
    Ok(rustix::io::ioctl_fionread(&copy)?)
}

#[cfg(test)]
mod tests {
    use std::os::{fd::AsRawFd as _, unix::net::UnixDatagram};

    use super::*;

    #[test]
    fn a_queued_byte_is_seen_and_left_there() {
        let (host, plugin) = UnixDatagram::pair().unwrap();
        let process = Process::open(std::process::id()).unwrap();
        let fd = plugin.as_raw_fd().cast_unsigned();
        assert_eq!(pending_through_copy(&process, fd).unwrap(), 0);
        host.send(b"x").unwrap();
        assert_eq!(pending_through_copy(&process, fd).unwrap(), 1);
        assert_eq!(plugin.recv(&mut [0; 8]).unwrap(), 1, "still there");
        assert!(pending_through_copy(&process, 1 << 20).is_err());
    }
}
