//! What a watch is told.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use shmtrace_engine::{Code, Config, Direction, Finding, PeerId, State};

use crate::{report::WallClock, rights::Role};

/// Settings of a watch.
#[derive(Debug, Clone)]
pub struct Options {
    /// Relates the times of events to wall time.
    pub clock: WallClock,
    /// Roots of the trees.
    pub roots: Vec<u32>,
    /// How long a stuck state must last, ns.
    pub grace_ns: u64,
    /// When to stop by itself.
    pub duration: Option<Duration>,
    /// Quiet for this long is a finding, ns.
    pub expect_progress_ns: Option<u64>,
    /// Report every doorbell event.
    pub events: bool,
    /// Report suspects too.
    pub verbose: bool,
    /// Show findings of these peers only; empty = all.
    pub peers: BTreeSet<PeerId>,
    /// Show findings of this direction only.
    pub lane: Option<Direction>,
    /// Show findings of these classes only; empty = all.
    pub codes: BTreeSet<Code>,
    /// Findings that decide the exit code.
    pub fail_on: FailOn,
    /// Where to record everything.
    pub record: Option<PathBuf>,
    /// Directory for recordings of the seconds around each finding.
    pub record_findings: Option<PathBuf>,
    /// Bytes for the records of all CPUs.
    pub buffer_bytes: usize,
    /// See sends on closed fds, where every system call of the machine pays for it, too.
    pub failed_sends: bool,
    /// How often the canary's lost wakeup must be found; `None` = no canary.
    pub canary: Option<Duration>,
    /// What follows the watch, which decides on the rights that are kept.
    pub role: Role,
}

/// Which findings make a watch fail.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FailOn {
    /// Every proven finding, masked ones included.
    pub any: bool,
    /// Masked findings of any class.
    pub masked: bool,
    /// Proven findings of these classes.
    pub codes: BTreeSet<Code>,
}

impl FailOn {
    /// Whether a finding of this class that reached this state is one of them.
    pub fn fires(&self, code: Code, state: State) -> bool {
        match state {
            State::Missed => self.any || self.codes.contains(&code),
            State::Masked => self.any || self.masked,
            State::Suspect | State::Recovered | State::Ended | State::Inconclusive => false,
        }
    }
}

impl Options {
    /// The engine's part of the settings.
    pub(crate) fn engine(&self) -> Config {
        Config {
            grace: self.grace_ns,
            expect_progress: self.expect_progress_ns,
        }
    }

    /// Whether a finding is to be shown.
    pub(crate) fn shows(&self, finding: &Finding) -> bool {
        (self.verbose || finding.state != State::Suspect)
            && (self.codes.is_empty() || self.codes.contains(&finding.code))
            && (self.peers.is_empty()
                || finding.peer.is_some_and(|peer| self.peers.contains(&peer)))
            && self.lane.is_none_or(|direction| {
                finding.lane.is_some_and(|lane| lane.direction == direction)
            })
    }
}
