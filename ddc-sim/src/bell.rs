//! A doorbell's end behind the transport's back: ringing, taking, looking, mistreating it.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::path::Path;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One end of a doorbell that the transport of this process owns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bell(RawFd);

/// How a ring can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// ECONNREFUSED: the other end is closed.
    Refused,
    /// EPIPE: the other end does not read any more.
    Pipe,
    /// EBADF: our end is closed.
    BadFd,
}

impl Bell {
    /// The end with this number. The caller keeps the transport alive for as long as it uses it.
    pub(crate) fn new(fd: RawFd) -> Self {
        Self(fd)
    }

    fn fd<'a>(self) -> BorrowedFd<'a> {
        // SAFETY: the transport that owns the number lives for as long as this is used. While a fault replaced or
        // closed it, system calls on it fail or reach the replacement, which is the fault's purpose.
        unsafe { BorrowedFd::borrow_raw(self.0) }
    }

    /// Sends one token, as the transport does.
    pub(crate) fn ring(self) -> io::Result<()> {
        rustix::net::send(self.fd(), &[1], SendFlags::DONTWAIT)
            .map(drop)
            .map_err(Into::into)
    }

    /// Takes every token that is queued here; returns how many.
    pub(crate) fn take_all(self) -> io::Result<usize> {
        let mut taken = 0;
        loop {
            match rustix::net::recv(self.fd(), &mut [0u8; 64], RecvFlags::DONTWAIT) {
                Ok(_) => taken += 1,
                Err(rustix::io::Errno::AGAIN) => return Ok(taken),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether a token is queued here.
    pub(crate) fn is_rung(self) -> bool {
        rustix::io::ioctl_fionread(self.fd()).is_ok_and(|bytes| bytes > 0)
    }

    /// Whether what we sent is still queued at the other end.
    pub(crate) fn is_unheard(self) -> bool {
        let mut bytes: libc::c_int = 0;
        // SAFETY: TIOCOUTQ (SIOCOUTQ for a socket) stores one int, and `bytes` is one.
        let result = unsafe { libc::ioctl(self.0, libc::TIOCOUTQ, &raw mut bytes) };
        result == 0 && bytes > 0
    }

    /// Waits in the runtime's epoll until a token is queued here, without taking it.
    pub(crate) async fn rung(self) -> io::Result<()> {
        let copy = rustix::io::fcntl_dupfd_cloexec(self.fd(), 3)?;
        // SAFETY: `copy` is ours alone and stays open and the same until the registration is dropped with it.
        let copy = unsafe { AsyncFd::register_with_interest(copy, Interest::READABLE) }?;
        while !self.is_rung() {
            copy.readable().await?.clear_ready();
        }
        Ok(())
    }

    /// Takes this end out of every epoll instance of the process: its readiness is never reported again.
    pub(crate) fn unregister(self) -> io::Result<()> {
        let mut removed = 0;
        for entry in fs::read_dir("/proc/self/fd")? {
            let entry = entry?;
            let Some(epoll) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<RawFd>().ok())
            else {
                continue;
            };
            if fs::read_link(entry.path())
                .is_ok_and(|target| target == Path::new("anon_inode:[eventpoll]"))
            {
                // SAFETY: no memory is involved: EPOLL_CTL_DEL ignores the event argument. A wrong number only fails.
                removed += i32::from(unsafe {
                    libc::epoll_ctl(epoll, libc::EPOLL_CTL_DEL, self.0, std::ptr::null_mut()) == 0
                });
            }
        }
        if removed == 0 {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "doorbell is registered in no epoll of this process",
            ));
        }
        Ok(())
    }

    /// Makes every ring fail until the result is given to [`mend`](Self::mend).
    pub(crate) fn break_ring(self, failure: Failure) -> io::Result<OwnedFd> {
        // Close-on-exec, and high, so that nothing takes the number for the doorbell's.
        let saved = rustix::io::fcntl_dupfd_cloexec(self.fd(), 500)?;
        if failure == Failure::BadFd {
            // SAFETY: the number is the transport's and comes back in `mend`; until then nobody opens anything here
            // that could get it, and the transport's calls on it are meant to fail.
            unsafe { libc::close(self.0) };
            return Ok(saved);
        }
        let (near, far) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::DGRAM,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            None,
        )?;
        if failure == Failure::Pipe {
            rustix::net::shutdown(&near, Shutdown::Write)?;
        }
        self.replace(&near)?;
        drop(far);
        Ok(saved)
    }

    /// Gives the doorbell its end back.
    pub(crate) fn mend(self, saved: &OwnedFd) -> io::Result<()> {
        self.replace(saved)
    }

    fn replace(self, with: &OwnedFd) -> io::Result<()> {
        // SAFETY: the number belongs to the transport and stays open; only what it refers to changes.
        if unsafe { libc::dup3(with.as_raw_fd(), self.0, libc::O_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// A pipe whose reader blocks: the write end is the caller's to keep.
pub(crate) fn silent_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for the two numbers that pipe2 stores.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: pipe2 just made both, and nobody else owns them.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}
