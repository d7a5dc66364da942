//! What the fuzzers in `fuzz/` call: each takes any bytes as what a stranger wrote, and panics if a promise is broken.
//!
//! Compiled for fuzzers and tests only. The seeds in `fuzz/seeds` are replayed as an ordinary test (`seeds`).

mod hub;
mod netlink;
mod recording;
mod sink;

#[cfg(test)]
mod seeds;

pub use crate::{process::fuzzing::proc, session::fuzzing::records};
pub use hub::hub;
pub use netlink::netlink;
pub use recording::{recording, steps};

pub(crate) use sink::Sink;

use crate::session::Options;

/// The settings of a watch in which everything is shown.
pub(crate) fn options() -> Options {
    Options {
        clock: crate::report::WallClock::start(),
        roots: vec![1],
        grace_ns: 50_000_000,
        duration: None,
        expect_progress_ns: Some(1_000_000_000),
        events: true,
        verbose: true,
        peers: std::collections::BTreeSet::new(),
        lane: None,
        codes: std::collections::BTreeSet::new(),
        fail_on: crate::session::FailOn::default(),
        record: None,
        record_findings: None,
        buffer_bytes: 0,
        failed_sends: true,
        canary: None,
        role: crate::rights::Role::Watch,
    }
}
