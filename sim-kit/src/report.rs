//! The lines on stdout: one JSON object each, written at once.

use std::io::Write as _;

use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of the kernel's records.
pub fn mono_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Writes one line. A reader that went away is no reason to stop.
pub fn line(value: &Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{value}").and_then(|()| out.flush());
}
