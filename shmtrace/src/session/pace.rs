//! How fast records come: what slows down every call of the machine is not kept on while there are very many.

use shmtrace_engine::Mono;

/// A rate is taken over this long, ns.
const WINDOW: u64 = 100_000_000;
/// From so many records in a window on they are many: 200,000 a second.
const MANY: u64 = 20_000;
/// Up to so many they are few.
const FEW: u64 = 10_000;
/// After so many windows with few, the load is over.
const CALM: u32 = 10;

/// The recent pace of the records.
#[derive(Debug, Default)]
pub(super) struct Pace {
    window: Mono,
    records: u64,
    calm: u32,
    fast: bool,
    /// The latest look while they were very many.
    fast_until: Option<Mono>,
}

impl Pace {
    /// Counts records; true while there are very many, or were a second ago.
    pub(super) fn is_fast(&mut self, now: Mono, records: usize) -> bool {
        self.records += records as u64;
        if self.fast {
            self.fast_until = Some(now);
        }
        if now.since(self.window) < WINDOW {
            return self.fast;
        }
        // A window in which nobody looked for long is longer: its records count as if they had come in this one.
        match self.records {
            MANY.. => (self.fast, self.calm) = (true, 0),
            ..=FEW => {
                self.calm = self.calm.saturating_add(1);
                self.fast &= self.calm < CALM;
            }
            _ => self.calm = 0,
        }
        (self.window, self.records) = (now, 0);
        self.fast
    }

    /// When there were very many last.
    pub(super) fn fast_until(&self) -> Option<Mono> {
        self.fast_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_fast_at_once_and_over_after_a_second_of_calm() {
        let mut pace = Pace::default();
        let mut now = 1_000_000_000;
        let mut after = |records| {
            now += WINDOW;
            pace.is_fast(Mono(now), records)
        };
        assert!(!after(1_000));
        assert!(!after(19_999), "between few and many nothing changes");
        assert!(after(20_000));
        assert!(after(13_000), "between few and many nothing changes");
        for _ in 1..CALM {
            assert!(after(0));
        }
        assert!(!after(0));
        assert!(pace.fast_until() >= Some(Mono(now - 2 * WINDOW)));
    }
}
