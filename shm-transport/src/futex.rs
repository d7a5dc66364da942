//! Futex waits and wakes on words of the hub. Never PRIVATE: the words are shared between processes.

use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// By a wake.
    Wake,
    /// The word did not have the expected value.
    Changed,
    /// Nothing happened in time, or a signal came.
    TimeOut,
}

/// Sleeps until `word` is woken, unless it is not `expected` any more, for `timeout` at most.
///
/// This blocks the thread: on an async runtime it belongs on a thread for blocking work.
pub fn wait(word: &AtomicU32, expected: u32, timeout: Duration) -> Woken {
    let time = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(timeout.subsec_nanos() as i32),
    };
    // SAFETY: `word` and `time` are valid for the length of the call, and the kernel writes neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            expected,
            &raw const time,
            ptr::null::<u32>(),
            0_u32,
        )
    };
    if result == 0 {
        return Woken::Wake;
    }
    match std::io::Error::last_os_error().raw_os_error() {
        Some(libc::EAGAIN) => Woken::Changed,
        _ => Woken::TimeOut,
    }
}

/// Wakes all that sleep on `word`. Returns how many.
pub fn wake_all(word: &AtomicU32) -> usize {
    // SAFETY: `word` is valid for the length of the call; a wake only uses its address.
    let woken = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE,
            i32::MAX,
            ptr::null::<libc::timespec>(),
            ptr::null::<u32>(),
            0_u32,
        )
    };
    usize::try_from(woken).unwrap_or(0)
}

/// Changes `word`, so that nobody falls asleep on its old value any more.
pub fn bump(word: &AtomicU32) {
    // Release: who sees the new value sees what was done before. The kernel compares the word under its own lock,
    // so a waiter either sees this change or is on the queue when a later wake comes.
    word.fetch_add(1, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_wait_ends_by_change_time_or_wake() {
        let word = AtomicU32::new(7);
        assert_eq!(wait(&word, 6, Duration::from_secs(60)), Woken::Changed);
        assert_eq!(wait(&word, 7, Duration::from_millis(1)), Woken::TimeOut);
        assert_eq!(wake_all(&word), 0);
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| wait(&word, 7, Duration::from_secs(60)));
            let start = Instant::now();
            while wake_all(&word) == 0 {
                assert!(start.elapsed() < Duration::from_secs(30), "nobody sleeps");
                std::thread::yield_now();
            }
            assert_eq!(sleeper.join().unwrap(), Woken::Wake);
        });
    }
}
