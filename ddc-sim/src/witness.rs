//! A process that notices whatever is done to it: every call is made so that its result is known beforehand.
//!
//! Each thread makes one kind of blocking call again and again, and counts what a tracer could cause: calls that end
//! with EINTR, results that differ, and a stop (which ends with SIGCONT). Nothing is retried, so nothing is hidden.

use std::io::{self, Read as _};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::json;
use sim_kit::child;
use sim_kit::report::line;

static CALLS: AtomicU64 = AtomicU64::new(0);
static INTERRUPTED: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);
static CONTINUED: AtomicU64 = AtomicU64::new(0);
static OVER: AtomicBool = AtomicBool::new(false);
static WORD: AtomicU32 = AtomicU32::new(0);

/// Pause between two calls of a thread.
const PAUSE: Duration = Duration::from_micros(500);
/// Pause between two children.
const CHILDREN: Duration = Duration::from_millis(50);

/// The role `witness`: makes calls until stdin ends, and tells what became of them.
pub(crate) fn run() -> anyhow::Result<()> {
    count_continues()?;
    let (here, there) = pair()?;
    let poll = silent_epoll()?;
    // It has all its fds now; but for children, there will be no more.
    line(&json!({"event": "witness", "pid": std::process::id()}));
    let threads = [
        thread::spawn(move || send(here)),
        thread::spawn(move || receive(there)),
        thread::spawn(move || epoll(poll)),
        thread::spawn(futex_wait),
        thread::spawn(futex_wake),
        thread::spawn(children),
    ];
    let told = io::stdin().read_to_end(&mut Vec::new());
    OVER.store(true, Ordering::Relaxed);
    for each in threads {
        ensure!(each.join().is_ok(), "a thread of the witness panicked");
    }
    told.context("waiting for the end of stdin")?;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    line(
        &json!({"event": "testimony", "calls": count(&CALLS), "interrupted": count(&INTERRUPTED),
        "wrong": count(&WRONG), "continued": count(&CONTINUED)}),
    );
    Ok(())
}

/// Notes how a call ended: `result` is what it returned, `expected` what it had to.
fn note(result: i64, expected: i64) {
    CALLS.fetch_add(1, Ordering::Relaxed);
    if result == expected {
        return;
    }
    let interrupted = result < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EINTR);
    let counter = if interrupted { &INTERRUPTED } else { &WRONG };
    counter.fetch_add(1, Ordering::Relaxed);
}

fn is_over() -> bool {
    // Relaxed: nothing is handed over.
    OVER.load(Ordering::Relaxed)
}

/// Whoever was stopped is sent SIGCONT before it goes on.
fn count_continues() -> anyhow::Result<()> {
    extern "C" fn on_continue(_signal: libc::c_int) {
        CONTINUED.fetch_add(1, Ordering::Relaxed);
    }
    let handler = on_continue as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler does nothing but add to an atomic.
    let before = unsafe { libc::signal(libc::SIGCONT, handler) };
    ensure!(before != libc::SIG_ERR, "cannot listen to SIGCONT");
    Ok(())
}

/// Datagram sockets, as doorbells are.
fn pair() -> anyhow::Result<(i32, i32)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for two fds, which live as long as the process.
    let made = unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_DGRAM, 0, ends.as_mut_ptr()) };
    ensure!(made == 0, "cannot make a pair of sockets");
    Ok((ends[0], ends[1]))
}

fn send(end: i32) {
    let mut number = 0_u64;
    loop {
        // The last one ends the receiver.
        let last = is_over();
        let bytes = if last { u64::MAX } else { number }.to_ne_bytes();
        // SAFETY: eight bytes of ours.
        note(
            unsafe { libc::send(end, bytes.as_ptr().cast(), 8, 0) } as i64,
            8,
        );
        if last {
            return;
        }
        number += 1;
        sleep(PAUSE);
    }
}

fn receive(end: i32) {
    let mut expected = 0_u64;
    loop {
        let mut bytes = [0; 8];
        // SAFETY: eight bytes of ours.
        note(
            unsafe { libc::recv(end, bytes.as_mut_ptr().cast(), 8, 0) } as i64,
            8,
        );
        match u64::from_ne_bytes(bytes) {
            u64::MAX => return,
            number => note(number as i64, expected as i64),
        }
        expected += 1;
    }
}

/// An epoll instance that watches what never becomes ready.
fn silent_epoll() -> anyhow::Result<libc::c_int> {
    // SAFETY: fds that live as long as the process; `event` is ours.
    let added = unsafe {
        let (poll, silent) = (libc::epoll_create1(0), libc::eventfd(0, 0));
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: 0,
        };
        let added = libc::epoll_ctl(poll, libc::EPOLL_CTL_ADD, silent, &raw mut event);
        (added == 0).then_some(poll)
    };
    added.context("cannot make an epoll instance")
}

/// Waits for what never comes, until the time is over.
fn epoll(poll: libc::c_int) {
    while !is_over() {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: room for one event.
        note(
            unsafe { libc::epoll_wait(poll, &raw mut event, 1, 1) }.into(),
            0,
        );
    }
}

/// The word is odd while a waker is due.
fn futex_wait() {
    while !is_over() {
        let seen = WORD.load(Ordering::Acquire);
        let patience = libc::timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        // SAFETY: a word and a time that outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_futex,
                WORD.as_ptr(),
                libc::FUTEX_WAIT,
                seen,
                &raw const patience,
            )
        };
        if is_over() {
            return;
        }
        // The waker was faster: as good as woken.
        let early = result < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
        note(if early { 0 } else { result }, 0);
    }
}

fn futex_wake() {
    while !is_over() {
        sleep(PAUSE);
        WORD.fetch_add(1, Ordering::Release);
        // SAFETY: a word that outlives the call.
        let woken = unsafe { libc::syscall(libc::SYS_futex, WORD.as_ptr(), libc::FUTEX_WAKE, 1) };
        // Nobody may be waiting at the moment.
        note(woken.min(0), 0);
    }
}

/// Children that end as they should.
fn children() {
    while !is_over() {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 7"]);
        child::die_with_parent(&mut command, &[]);
        match command.status() {
            Ok(status) => note(status.code().unwrap_or(-1).into(), 7),
            Err(_) => note(-1, 7),
        }
        thread::sleep(CHILDREN);
    }
}

/// A sleep that is not taken up again when it is interrupted.
fn sleep(time: Duration) {
    let time = libc::timespec {
        tv_sec: 0,
        tv_nsec: time.subsec_nanos().into(),
    };
    // SAFETY: a time that outlives the call; what is left of it is not asked for.
    note(
        unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) }.into(),
        0,
    );
}
