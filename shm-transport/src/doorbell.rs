//! The doorbell: one end of a socketpair that carries both directions.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use rustix::io::{Errno, FdFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::HubError;

/// One end of a peer's doorbell.
#[derive(Debug)]
pub struct Doorbell(AsyncFd<OwnedFd>);

/// What a receiver knows about the signals in its queue: a sender rings at most once for each message, after it
/// published the message. So whoever has taken as many signals as there are messages knows the queue to be empty
/// without asking the kernel.
///
/// The count decides only whether one more system call is made before a sleep. Should it be wrong (somebody rang
/// without a message), a signal lies in the queue a little longer; none is missed, since each arrival is an event.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    /// Messages whose signal was taken, or will never come.
    settled: u64,
    /// The queue was found empty with one signal unaccounted for: left out, or still to come.
    doubt: bool,
}

impl Tokens {
    fn owed(&self, published: u64) -> u64 {
        published.saturating_sub(self.settled)
    }

    fn took_one(&mut self, published: u64) {
        // Not beyond the messages: a signal too many stands for none.
        self.settled = published.min(self.settled + 1);
    }

    /// The queue was empty after `published` messages were seen. Their sender rings for one before it publishes the
    /// next, so all but the last are settled; and that one too when nothing came of the same doubt the last time.
    fn found_none(&mut self, published: u64) {
        let owed = self.owed(published);
        let settle_all = self.doubt && owed == 1;
        self.doubt = owed > 0 && !settle_all;
        let unsettled = u64::from(owed > 0 && !settle_all);
        self.settled = published.saturating_sub(unsettled);
    }
}

/// What came of ringing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// A signal was queued.
    Queued,
    /// The queue is full, so a signal waits already.
    Pending,
}

impl Doorbell {
    /// Makes a doorbell: our end, and the other for a child to inherit. Call it within a tokio runtime.
    ///
    /// Our end is closed on exec; the other is not, until the caller closes it.
    ///
    /// # Errors
    ///
    /// When no socketpair can be had, or there is no runtime with I/O.
    pub fn create_pair() -> Result<(Self, OwnedFd), HubError> {
        let failed = |action| {
            move |source: Errno| HubError::Doorbell {
                action,
                source: source.into(),
            }
        };
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::DGRAM,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            None,
        )
        .map_err(failed("create"))?;
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).map_err(failed("hand out"))?;
        Ok((Self::from_owned(ours)?, theirs))
    }

    /// Takes over an fd that was inherited. Call it within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When it is not an open socket.
    ///
    /// # Safety
    ///
    /// Nothing else in this process may own the fd.
    pub unsafe fn from_raw_fd(fd: RawFd) -> Result<Self, HubError> {
        let failed = |source: io::Error| HubError::Doorbell {
            action: "take over",
            source,
        };
        if fd < 0 {
            return Err(failed(Errno::BADF.into()));
        }
        // SAFETY: fcntl only asks; a number that is no open fd gives an error.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        // SAFETY: open, and the caller says that nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        rustix::net::sockopt::socket_type(&fd).map_err(|error| failed(error.into()))?;
        rustix::io::ioctl_fionbio(&fd, true).map_err(|error| failed(error.into()))?;
        rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
        Self::from_owned(fd)
    }

    fn from_owned(fd: OwnedFd) -> Result<Self, HubError> {
        register(fd).map(Self).map_err(|source| HubError::Doorbell {
            action: "register",
            source,
        })
    }

    /// Signals the other end.
    ///
    /// # Errors
    ///
    /// When nobody has the other end any more (`ECONNREFUSED`), or the fd is broken.
    pub fn ring(&self) -> io::Result<Rung> {
        loop {
            match rustix::net::send(
                self.0.get_ref(),
                &[1],
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(_) => return Ok(Rung::Queued),
                Err(Errno::AGAIN) => return Ok(Rung::Pending),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes one signal, waiting for it if none is there. Cancel-safe: a dropped wait takes none.
    ///
    /// It returns after each one, and the next call takes the next or finds the queue empty: so the queue is always
    /// empty before anybody sleeps, and a signal that comes between the last look and the sleep ends the sleep,
    /// since readiness is only cleared if nothing came since the look.
    ///
    /// # Errors
    ///
    /// When the socket is broken.
    pub async fn wait(&self) -> io::Result<()> {
        loop {
            let mut guard = self.0.readable().await?;
            // `try_io` clears readiness only on EAGAIN, and only the readiness that was known before the call.
            if let Ok(taken) = guard.try_io(|fd| take_one(fd.get_ref())) {
                return taken;
            }
        }
    }

    /// The same for a receiver that counts: without the calls that would find nothing, and without the sleep if `look`
    /// finds a message. `published` says how many messages the sender has published so far.
    pub(crate) async fn wait_counting(
        &self,
        tokens: &mut Tokens,
        published: impl Fn() -> u64,
        mut look: impl FnMut() -> bool,
    ) -> io::Result<()> {
        loop {
            let before = published();
            // With a signal that is known of, the wait below ends at once.
            if !self.is_flagged() {
                // A message that was found without waiting left its signal: taken here, rather than by an event.
                if tokens.owed(before) > 0 {
                    match take_one(self.0.get_ref()) {
                        Ok(()) => {
                            tokens.took_one(before);
                            return Ok(());
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            tokens.found_none(before);
                        }
                        Err(error) => return Err(error),
                    }
                }
                if look() {
                    return Ok(());
                }
            }
            let mut guard = self.0.readable().await?;
            let before = published();
            match guard.try_io(|fd| take_one(fd.get_ref())) {
                Ok(taken) => {
                    taken?;
                    tokens.took_one(before);
                    // Cleared without a look at the queue, but only if no event came since: a signal that comes
                    // from here on is an event of its own, and one that was there before the last event belongs to
                    // a message that the caller finds now, since it looks into the ring after every return.
                    if tokens.owed(before) == 0 {
                        guard.clear_ready();
                    }
                    return Ok(());
                }
                Err(_) => tokens.found_none(before),
            }
        }
    }

    /// Whether the runtime knows of a signal that may still be there.
    fn is_flagged(&self) -> bool {
        self.0.try_io(Interest::READABLE, |_| Ok(())).is_ok()
    }

    /// Takes all signals that are there. Returns how many.
    ///
    /// # Errors
    ///
    /// When the socket is broken.
    pub fn drain(&self) -> io::Result<usize> {
        let mut taken = 0;
        loop {
            match take_one(self.0.get_ref()) {
                Ok(()) => taken += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(taken),
                Err(error) => return Err(error),
            }
        }
    }

    /// FIONREAD: bytes of the first signal that is queued, 0 when there is none or it cannot be asked.
    pub fn pending_bytes(&self) -> usize {
        rustix::io::ioctl_fionread(self.0.get_ref()).map_or(0, |bytes| bytes as usize)
    }

    /// The number of our end.
    pub fn as_raw_fd(&self) -> RawFd {
        self.0.get_ref().as_raw_fd()
    }

    /// The process that made the socketpair, which is the host. `None` when it cannot be seen from here.
    pub(crate) fn maker(&self) -> Option<rustix::process::Pid> {
        // The kernel answers 0 for a process of a pid namespace that we cannot see; rustix's type has no 0, so the
        // option is read by hand.
        let mut credentials = libc::ucred {
            pid: 0,
            uid: 0,
            gid: 0,
        };
        let mut size = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: the buffer is a ucred of the size that is given, and ours.
        let result = unsafe {
            libc::getsockopt(
                self.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut credentials).cast(),
                &raw mut size,
            )
        };
        (result == 0)
            .then(|| rustix::process::Pid::from_raw(credentials.pid))
            .flatten()
    }
}

/// Puts an fd under the runtime's watch; an error, not a panic, when there is no runtime.
pub(crate) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
    // SAFETY: an OwnedFd is open, names the same file, and always returns the same number until it is dropped, which
    // only the AsyncFd does.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(Into::into)
}

fn take_one(fd: &OwnedFd) -> io::Result<()> {
    // Nothing is copied, the datagram is dropped; with TRUNC the kernel still says how long it was.
    let mut nothing = [0_u8; 0];
    loop {
        match rustix::net::recv(fd, &mut nothing[..], RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
