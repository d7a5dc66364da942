//! The handler, and the thread that it wakes.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};

use crate::{block, children};

/// Name of the thread that answers.
pub(crate) const THREAD: &str = "sigusr1";

/// The eventfd that the handler writes to; -1 before there is one. It is never closed.
static BELL: AtomicI32 = AtomicI32::new(-1);

/// Name under which the process reports; `Some` once the handler is installed.
static NAME: Mutex<Option<String>> = Mutex::new(None);

pub(crate) fn install(name: &str) -> io::Result<()> {
    let mut known = NAME.lock().unwrap_or_else(PoisonError::into_inner);
    if known.is_none() {
        let bell = eventfd(0, EventfdFlags::CLOEXEC)?;
        // Release: the answering thread gets the fd by value, the handler only needs the number. It is stored
        // before the handler is installed, so a handler that runs always finds it.
        BELL.store(bell.as_raw_fd(), Ordering::Release);
        // The thread starts with the caller's mask, so it is started before the caller blocks the signal.
        thread::Builder::new()
            .name(THREAD.into())
            .spawn(move || answer(&bell))?;
        catch()?;
        block_here()?;
    }
    *known = Some(name.to_owned());
    Ok(())
}

/// Async-signal-safe: one `write` to an fd that stays open, and errno as it was.
extern "C" fn ring(_signal: libc::c_int) {
    // SAFETY: __errno_location returns this thread's own errno, valid for as long as the thread lives.
    let saved = unsafe { *libc::__errno_location() };
    let one = 1_u64;
    // SAFETY: eight readable bytes; on a wrong fd or a full counter write fails, and nothing is to be done then:
    // a full counter means that the thread has a wakeup waiting for it anyway.
    let _written = unsafe {
        libc::write(
            // Acquire: pairs with the Release store in `install`.
            BELL.load(Ordering::Acquire),
            (&raw const one).cast(),
            size_of::<u64>(),
        )
    };
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = saved };
}

fn catch() -> io::Result<()> {
    let handler: extern "C" fn(libc::c_int) = ring;
    // SAFETY: an all-zero sigaction is a valid one (empty mask, no flags).
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler as libc::sighandler_t;
    // Restart what can be restarted, for threads that were there before us.
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: `action` is initialized, and `ring` does only what a signal handler may do.
    match unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn block_here() -> io::Result<()> {
    change_mask(libc::SIG_BLOCK)
}

fn change_mask(how: libc::c_int) -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initializes the set before it is used; both calls get valid pointers.
    let error = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGUSR1);
        libc::pthread_sigmask(how, set.as_ptr(), ptr::null_mut())
    };
    match error {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn answer(bell: &OwnedFd) {
    // The caller may have had the signal blocked; here it must come through.
    let _stays_blocked_then = change_mask(libc::SIG_UNBLOCK);
    let mut count = [0; 8];
    loop {
        match rustix::io::read(bell, &mut count) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
        }
        let name = NAME
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .unwrap_or_default();
        block::print(&name);
        children::forward();
    }
}
