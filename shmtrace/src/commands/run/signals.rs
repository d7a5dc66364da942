//! Signals to this process, with who sent them.

use std::{
    io,
    mem::{MaybeUninit, size_of},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr,
};

use crate::launch::SignalMask;
use rustix::process::Signal;
use tokio::io::{Interest, unix::AsyncFd};

/// Those that are taken over. The rest keeps its meaning: SIGTSTP stops the job, as at any terminal.
const TAKEN: [Signal; 7] = [
    Signal::INT,
    Signal::TERM,
    Signal::HUP,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
    Signal::CHILD,
];

/// A signal that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) signal: Signal,
    /// The terminal sent it to the whole foreground process group, by ^C and the like.
    pub(super) by_terminal: bool,
}

/// Signals that come through a file descriptor instead of interrupting.
pub(super) struct Signals {
    fd: OwnedFd,
    before: SignalMask,
}

/// Signals to wait for, on a runtime.
pub(super) struct Listening<'a> {
    fd: AsyncFd<BorrowedFd<'a>>,
}

impl Signals {
    /// Blocks them for this thread and all that it will start, and opens the descriptor.
    pub(super) fn take_over() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset fills in the whole set.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: filled in above.
        let mut set = unsafe { set.assume_init() };
        for signal in TAKEN {
            // What the parent had ignored (`nohup`) stays so; a child must be waited for either way.
            if signal == Signal::CHILD || !is_ignored(signal)? {
                // SAFETY: a set that was filled in, and a valid signal number.
                unsafe { libc::sigaddset(&raw mut set, signal.as_raw()) };
            }
        }
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: a set that was filled in, and room for another.
        let result =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, before.as_mut_ptr()) };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        // SAFETY: a set that was filled in; -1 asks for a new descriptor.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: made above, and nobody else has it.
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
            // SAFETY: the call above worked, so it was filled in.
            before: SignalMask(unsafe { before.assume_init() }),
        })
    }

    /// What was blocked before: what the command is to have.
    pub(super) fn before(&self) -> SignalMask {
        self.before
    }

    /// Listens on the runtime of the caller.
    pub(super) fn listen(&self) -> io::Result<Listening<'_>> {
        // SAFETY: borrowed for as long as it is registered, so it stays open and the same.
        let fd = unsafe { AsyncFd::register_with_interest(self.fd.as_fd(), Interest::READABLE) };
        Ok(Listening { fd: fd? })
    }
}

impl Listening<'_> {
    /// The next signal.
    pub(super) async fn next(&mut self) -> Received {
        loop {
            let Ok(mut ready) = self.fd.readable().await else {
                // The runtime shuts down: nothing will come any more.
                return std::future::pending().await;
            };
            if let Some(received) = read_one(*self.fd.get_ref()) {
                return received;
            }
            ready.clear_ready();
        }
    }
}

fn read_one(fd: BorrowedFd<'_>) -> Option<Received> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
    let bytes = size_of::<libc::signalfd_siginfo>();
    // SAFETY: the buffer is as long as stated.
    let read = unsafe { libc::read(fd.as_raw_fd(), info.as_mut_ptr().cast(), bytes) };
    if usize::try_from(read) != Ok(bytes) {
        return None;
    }
    // SAFETY: all zeroes is a valid value, and the kernel filled it in.
    let info = unsafe { info.assume_init() };
    let signal = TAKEN
        .into_iter()
        .find(|signal| signal.as_raw().cast_unsigned() == info.ssi_signo)?;
    Some(Received {
        signal,
        by_terminal: info.ssi_code == libc::SI_KERNEL,
    })
}

fn is_ignored(signal: Signal) -> io::Result<bool> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: asks for the current action only, into a buffer of its type.
    let result = unsafe { libc::sigaction(signal.as_raw(), ptr::null(), action.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeroes is a valid value, and the kernel filled it in.
    Ok(unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN)
}

/// Waits for what has ended, but not for the command itself, whose status is wanted.
pub(super) fn reap_orphans(command: u32) {
    loop {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: looks only, into a buffer of its type.
        let result = unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), options) };
        if result != 0 {
            return;
        }
        // SAFETY: all zeroes is a valid value, and the kernel filled it in; without a child that ended it stays zero,
        // pid included.
        let pid = unsafe { info.assume_init().si_pid() };
        if pid <= 0 || pid.cast_unsigned() == command {
            return;
        }
        // SAFETY: a child of ours that has ended; its status is not asked for.
        if unsafe { libc::waitpid(pid, ptr::null_mut(), libc::WNOHANG) } != pid {
            return;
        }
    }
}
