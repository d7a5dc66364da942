//! A short look at the ring before going to sleep.
//!
//! A wakeup costs more than most answers take, above all when it has to leave an idle processor. So a receiver looks
//! for a message a little longer before it sleeps, where that has paid lately. It only looks: it tells nobody, takes
//! nothing, and comes after the check that permits the sleep, so whoever publishes meanwhile rings as for a sleeper.

use std::hint::spin_loop;
use std::time::{Duration, Instant};

/// Longest look. Somewhat more than a sleeping process takes to wake and answer, so that two that sleep by turns find
/// each other; and short beside what a runtime's other tasks wait for each other anyway.
const LOOK: Duration = Duration::from_micros(20);

/// Looks at the ring between two looks at the clock.
const PER_CLOCK: u32 = 16;

/// Most sleeps without a look before them, after looks that found nothing: 20 us spent in 1024 sleeps. That is what it
/// costs two processes that share their only processor, where no look can find anything.
const MOST_SKIPPED: u32 = 1023;

/// Whether a receiver looks again before its next sleep.
#[derive(Debug)]
pub(crate) struct Patience {
    /// The machine has one processor: the sender cannot run while we look.
    alone: bool,
    /// Sleeps without a look after the last one that was in vain.
    penalty: u32,
    /// How many of them are still to come.
    skip: u32,
}

impl Patience {
    pub(crate) fn new() -> Self {
        // Not the processors that we may use: the sender may be bound to another one.
        // SAFETY: sysconf only asks.
        let processors = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
        Self {
            alone: processors < 2,
            penalty: 0,
            skip: 0,
        }
    }

    /// Looks, for a moment at most, if it is likely to pay. Returns whether `arrived` came true.
    pub(crate) fn look(&mut self, arrived: impl Fn() -> bool) -> bool {
        if self.alone {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        let found = look(arrived);
        self.penalty = if found {
            0
        } else {
            (self.penalty * 2 + 1).min(MOST_SKIPPED)
        };
        self.skip = self.penalty;
        found
    }
}

fn look(arrived: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..PER_CLOCK {
            if arrived() {
                return true;
            }
            spin_loop();
        }
        if start.elapsed() >= LOOK {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn patience(alone: bool) -> Patience {
        Patience {
            alone,
            penalty: 0,
            skip: 0,
        }
    }

    /// How many of so many sleeps had a look before them, if a look finds something or not.
    fn looks(patience: &mut Patience, sleeps: u32, found: bool) -> u32 {
        let looks = Cell::new(0);
        for _ in 0..sleeps {
            let looked = Cell::new(false);
            let result = patience.look(|| {
                looked.set(true);
                found
            });
            assert_eq!(result, looked.get() && found);
            looks.set(looks.get() + u32::from(looked.get()));
        }
        looks.get()
    }

    #[test]
    fn it_looks_while_that_pays() {
        assert_eq!(looks(&mut patience(false), 100, true), 100);
    }

    #[test]
    fn in_vain_it_looks_ever_less_often_and_starts_again_when_it_pays() {
        let mut patience = patience(false);
        // After the n-th look in vain, 2^n - 1 sleeps without one.
        assert_eq!(looks(&mut patience, 2047, false), 11);
        assert_eq!(looks(&mut patience, 10 * 1024, false), 10);
        // The next look is due within one more penalty, and when it pays all that follow are made.
        let until_due = patience.skip;
        assert!(until_due <= MOST_SKIPPED);
        assert_eq!(looks(&mut patience, until_due, true), 0);
        assert_eq!(looks(&mut patience, 100, true), 100);
    }

    #[test]
    fn with_one_processor_it_never_looks() {
        assert_eq!(looks(&mut patience(true), 100, true), 0);
    }
}
