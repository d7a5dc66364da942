//! Wall time of monotonic instants.

use jiff::Timestamp;
use shmtrace_engine::Mono;

use crate::observe::mono_now;

/// Relates `CLOCK_MONOTONIC` to wall time, once, at the start: later clock steps do not reorder what is reported.
#[derive(Debug, Clone, Copy)]
pub struct WallClock {
    wall: Timestamp,
    mono: Mono,
}

impl WallClock {
    /// Wall and monotonic time of this moment.
    pub fn start() -> Self {
        Self {
            wall: Timestamp::now(),
            mono: mono_now(),
        }
    }

    /// The clock of a recording: `None` if its start time is no time.
    pub fn of_recording(start_time: &str, start_mono_ns: u64) -> Option<Self> {
        Some(Self {
            wall: start_time.parse().ok()?,
            mono: Mono(start_mono_ns),
        })
    }

    /// When it was started, RFC 3339.
    pub fn start_time(&self) -> String {
        self.wall.to_string()
    }

    /// The monotonic instant at which it was started.
    pub fn origin(&self) -> Mono {
        self.mono
    }

    /// Wall time of a monotonic instant, RFC 3339.
    pub fn rfc3339(&self, at: Mono) -> String {
        let offset = i64::try_from(i128::from(at.0) - i128::from(self.mono.0)).unwrap_or(0);
        let time = self
            .wall
            .checked_add(jiff::SignedDuration::from_nanos(offset));
        time.unwrap_or(self.wall).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_before_and_after_the_start_keep_their_distance() {
        let clock = WallClock {
            wall: Timestamp::from_second(1_000_000).unwrap(),
            mono: Mono(5_000_000_000),
        };
        assert_eq!(clock.rfc3339(Mono(5_000_000_000)), "1970-01-12T13:46:40Z");
        assert_eq!(clock.rfc3339(Mono(3_500_000_000)), "1970-01-12T13:46:38.5Z");
        assert_eq!(
            clock.rfc3339(Mono(6_000_000_001)),
            "1970-01-12T13:46:41.000000001Z"
        );
    }
}
