//! SIGUSR1 diagnostics: what every thread of a host or plugin waits for, and what its transport holds.
//!
//! A hung build is asked with `kill -USR1 PID`. The process that gets the signal prints one block on stderr:
//! its threads with state, system call, wait channel and stack, then whatever was registered with
//! [`register_diagnostic`] (the hub's section, on a host), and then forwards the signal to the children that
//! were registered with [`register_child_pid`], so that each plugin prints its own block.
//!
//! ```no_run
//! # fn main() -> std::io::Result<()> {
//! // First thing in `main`, before any runtime starts threads.
//! shm_debug::install_sigusr1_handler("ddc")?;
//! shm_debug::register_diagnostic(|out| out.push_str("--- My Section ---\n"));
//! # Ok(())
//! # }
//! ```
//!
//! How it stays safe, and answers when all else hangs:
//!
//! * The signal handler writes eight bytes to an eventfd and returns. A thread of this crate's own does the
//!   work, with nothing of the async runtime in its way.
//! * Called before other threads exist, [`install_sigusr1_handler`] blocks the signal in the caller (and so in
//!   all threads that it starts) and takes it on its own thread only. So no `epoll_wait` ends early with EINTR
//!   because somebody asked: that could cure the very hang that is looked at.
//! * A diagnostic runs on a thread of its own for at most [`PATIENCE`]. One that waits for a lock that nobody
//!   gives back is reported as such and not asked again until it has returned; one that panics is reported too.
//! * Children are held by pidfd: a signal never reaches a stranger that was given the pid of a dead child, and
//!   a child without a handler, which the signal would end, is left alone and named.
//!
//! Stacks are read from the sleeping threads' memory without stopping them: the address where the thread
//! entered the kernel, then every word on its stack that follows a call instruction. That needs neither frame
//! pointers nor a signal, and may show a stale return address between the real ones.

mod block;
mod children;
mod diagnostics;
mod signal;
mod stack;
mod threads;

use std::io;

pub use diagnostics::PATIENCE;

/// Starts answering SIGUSR1 under this name. A second call only changes the name.
///
/// Call it first thing in `main`: threads that exist already keep SIGUSR1 unblocked, and may then be the ones
/// that the kernel interrupts for it.
///
/// # Errors
///
/// What the system answers when no eventfd, thread or handler can be had.
pub fn install_sigusr1_handler(name: &str) -> io::Result<()> {
    signal::install(name)
}

/// Forwards SIGUSR1 to this child from now on, until it ends or [`unregister_child_pid`].
///
/// # Errors
///
/// When there is no such process (any more), or no pidfd can be had for it.
pub fn register_child_pid(pid: u32) -> io::Result<()> {
    children::register(pid)
}

/// Stops forwarding to this child. Not needed for children that have ended: they are forgotten by themselves.
pub fn unregister_child_pid(pid: u32) {
    children::unregister(pid);
}

/// Adds a section to the block: `f` appends its lines to the text that will be printed.
///
/// It runs on a thread of its own, for each signal anew, and should not wait for locks that a hung program
/// might hold; when it does, the block says so after [`PATIENCE`].
pub fn register_diagnostic(f: impl Fn(&mut String) + Send + Sync + 'static) {
    diagnostics::register(f);
}
