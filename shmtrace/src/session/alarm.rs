//! A timer that is as exact as the kernel's.
//!
//! tokio's rounds up to whole milliseconds, which adds up to several in what leads to a finding, and registering one with it
//! while nothing else waits costs a write to an `eventfd` and a second `epoll_wait`.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::{Interest, unix::AsyncFd};

/// One timer, set again and again.
pub(super) struct Alarm(AsyncFd<OwnedFd>);

impl Alarm {
    /// Within a runtime.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // SAFETY: the fd is its own, the same and open for as long as it lives.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) };
        Ok(Self(timer?))
    }

    /// Completes after this time, or at once if an earlier call completed and nobody waited for it any more.
    pub(super) async fn after(&mut self, pause: Duration) -> io::Result<()> {
        const ZERO: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // Zero would disarm it.
        let pause = pause.max(Duration::from_nanos(1));
        let once = Itimerspec {
            it_interval: ZERO,
            it_value: pause.try_into().map_err(io::Error::other)?,
        };
        // Setting it takes back that it expired before, so there is nothing to read.
        timerfd_settime(self.0.as_fd(), TimerfdTimerFlags::empty(), &once)?;
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn it_completes_after_each_pause_and_never_before() {
        let mut alarm = Alarm::new().unwrap();
        for micros in [0, 300, 1_700, 20, 5_000] {
            let pause = Duration::from_micros(micros);
            let begun = Instant::now();
            alarm.after(pause).await.unwrap();
            assert!(begun.elapsed() >= pause);
        }
    }

    #[tokio::test]
    async fn one_that_nobody_waits_for_any_more_does_not_hold_up_the_next() {
        let mut alarm = Alarm::new().unwrap();
        tokio::select! {
            biased;
            done = alarm.after(Duration::from_secs(3600)) => done.unwrap(),
            () = tokio::task::yield_now() => {}
        }
        alarm.after(Duration::from_millis(1)).await.unwrap();
    }
}
