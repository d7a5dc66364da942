//! Counting: records, losses, findings, and the exit code that follows.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::MapError;
use shmtrace_common::Counter;
use shmtrace_engine::{Code, Finding, Mono, State, Summary, input::Input};

use super::{options::FailOn, tables::Tables};
use crate::{
    bounds::{Bound, Reached},
    canary::Count,
    exit::Exit,
    probes,
    recording::Step,
};

/// Findings remembered, so that each state is counted once.
const MOST_COUNTED: usize = 4096;
/// Notes said on stderr and kept for the summary.
const MOST_NOTES: usize = 64;

/// Counts over a watch.
pub(crate) struct Tally {
    started: Mono,
    pub(crate) tables: Tables,
    counters: probes::Totals,
    /// Records that may be missing, since the kernel left out runs of the probes.
    left_out: u64,
    findings: BTreeMap<Code, u64>,
    masked: u64,
    inconclusive: u64,
    counted: BTreeSet<(u64, State)>,
    /// Classes and states reached, for `--fail-on`.
    reached: BTreeSet<(Code, State)>,
    notes: Vec<String>,
    bounds: Reached,
    /// A hub of another version was there, and could not be watched.
    pub(crate) unsupported: bool,
    rate: Rate,
    replayed: u64,
    replayed_lost: u64,
}

/// What a watch counted.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// How long it has lasted, ns.
    pub duration_ns: u64,
    /// Records that the probes wrote.
    pub events: u64,
    /// Records that found no room, and those that the kernel may have left out.
    pub lost: u64,
    /// Calls of interest in the trees.
    pub calls: u64,
    /// Of these, written as records.
    pub call_records: u64,
    /// Of these, lost.
    pub call_drops: u64,
    /// Of these, filtered in the kernel, by reason.
    pub filtered: BTreeMap<&'static str, u64>,
    /// Ring indexes that could not be read.
    pub ring_faults: u64,
    /// Records a second, lately.
    pub events_per_second: u64,
    /// Proven findings by class.
    pub findings: BTreeMap<Code, u64>,
    /// Masked findings.
    pub masked: u64,
    /// Inconclusive findings.
    pub inconclusive: u64,
    /// The entry that has waited longest, ns.
    pub oldest_waiting_ns: Option<u64>,
    /// What could not be seen or was refused, in words.
    pub notes: Vec<String>,
    /// Bounds of shmtrace's own that were reached, in words: not all was seen.
    pub limits: Vec<String>,
    /// Events that came too late to be put in order, or too many at once: histories have holes there.
    pub evicted: u64,
    /// What became of the canary, where there was one.
    pub canary: Option<Count>,
}

/// How a watch is to be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// The exit code that follows.
    pub exit: Exit,
    /// No hub was ever seen.
    pub blind: bool,
}

/// Records a second between two looks.
struct Rate {
    at: Mono,
    events: u64,
    per_second: u64,
}

impl Tally {
    pub(crate) fn new(now: Mono) -> Self {
        Self {
            started: now,
            tables: Tables::default(),
            counters: probes::Totals::default(),
            left_out: 0,
            findings: BTreeMap::new(),
            masked: 0,
            inconclusive: 0,
            counted: BTreeSet::new(),
            reached: BTreeSet::new(),
            notes: Vec::new(),
            bounds: Reached::default(),
            unsupported: false,
            rate: Rate {
                at: now,
                events: 0,
                per_second: 0,
            },
            replayed: 0,
            replayed_lost: 0,
        }
    }

    /// Reads the probes' counters; returns how many more records may be missing that none of them counts.
    pub(crate) fn counters(&mut self, probes: &probes::Probes, now: Mono) -> Result<u64, MapError> {
        let before = self.left_out;
        let counters = if probes.can_be_left_out() {
            let (mut missing, mut counters) = look(probes)?;
            if missing > before {
                // What is being made up for now is not missing the next time.
                let (again, later) = look(probes)?;
                (missing, counters) = (missing.min(again), later);
            }
            self.left_out = before.max(missing);
            counters
        } else {
            probes.counters()?
        };
        self.counters = counters;
        let elapsed = now.since(self.rate.at);
        if elapsed >= 1_000_000_000 {
            let events = counters.written();
            self.rate.per_second = u64::try_from(
                u128::from(events - self.rate.events) * 1_000_000_000 / u128::from(elapsed),
            )
            .unwrap_or(0);
            self.rate.at = now;
            self.rate.events = events;
        }
        Ok(self.left_out - before)
    }

    /// Processes that the probes did not follow, since their table was full.
    pub(crate) fn processes_not_followed(&self) -> u64 {
        self.counters.of(Counter::ProcessesFull)
    }

    /// Counts a step of a recording, which has no probes' counters.
    pub(crate) fn step(&mut self, step: &Step) {
        match step {
            Step::Input(Input::Event(_)) => self.replayed += 1,
            Step::Input(Input::Loss(loss)) => self.replayed_lost += loss.records,
            _ => {}
        }
    }

    /// Counts a finding, once for each state that it reaches.
    pub(crate) fn finding(&mut self, finding: &Finding) {
        if !self.counted.insert((finding.id, finding.state)) {
            return;
        }
        // Findings of long ago are over: they do not come again.
        if self.counted.len() > MOST_COUNTED {
            self.counted.pop_first();
        }
        match finding.state {
            State::Missed => *self.findings.entry(finding.code).or_default() += 1,
            State::Masked => self.masked += 1,
            State::Inconclusive => self.inconclusive += 1,
            State::Suspect | State::Recovered | State::Ended => {}
        }
        self.reached.insert((finding.code, finding.state));
    }

    /// Keeps a note for the summary; what is to be said now, so that a broken tree does not flood the report.
    pub(crate) fn note(&mut self, note: String) -> Option<String> {
        let said = match self.notes.len() {
            ..MOST_NOTES => note,
            MOST_NOTES => format!("more than {MOST_NOTES} notes: the rest is not shown"),
            _ => return None,
        };
        self.notes.push(said.clone());
        Some(said)
    }

    /// A bound was reached; whether that is to be said.
    pub(crate) fn reached(&mut self, bound: &Bound) -> bool {
        self.bounds.is_new(bound)
    }

    pub(crate) fn totals(&self, now: Mono, engine: &Summary) -> Totals {
        let of = |counter| self.counters.of(counter);
        Totals {
            duration_ns: now.since(self.started),
            events: self.counters.written() + self.replayed,
            lost: self.counters.dropped() + self.left_out + self.replayed_lost,
            calls: of(Counter::Calls),
            call_records: of(Counter::CallRecords),
            call_drops: of(Counter::CallDrops),
            filtered: BTreeMap::from([
                ("foreign", of(Counter::FilteredForeign)),
                ("empty", of(Counter::FilteredEmpty)),
                ("futex", of(Counter::FilteredFutex)),
                ("wait", of(Counter::FilteredWait)),
            ]),
            ring_faults: of(Counter::RingFaults),
            events_per_second: self.rate.per_second,
            findings: self.findings.clone(),
            masked: self.masked,
            inconclusive: self.inconclusive,
            oldest_waiting_ns: engine.oldest_waiting.map(|since| now.since(since)),
            notes: self.notes.clone(),
            limits: self.bounds.in_words(),
            evicted: engine.evicted,
            canary: None,
        }
    }

    /// The exit code, by what `--fail-on` names and what could be seen.
    pub(crate) fn verdict(&self, fail_on: &FailOn, totals: &Totals, saw_hub: bool) -> Verdict {
        let fired = self
            .reached
            .iter()
            .any(|(code, state)| fail_on.fires(*code, *state));
        let proven = !self.findings.is_empty();
        let was_blind = totals.canary.is_some_and(|count| count.was_blind);
        let not_all_seen = totals.lost > 0 || totals.inconclusive > 0 || !totals.limits.is_empty();
        let exit = if fired {
            Exit::Finding
        } else if !saw_hub && self.unsupported {
            Exit::NotPermitted
        } else if !saw_hub || was_blind || (!proven && not_all_seen) {
            Exit::Inconclusive
        } else {
            Exit::Clean
        };
        Verdict {
            exit,
            blind: !saw_hub,
        }
    }
}

/// How many calls were left out and not made up for, and the counters at that time. Both go on while they are read, and are
/// read again if something was made up for meanwhile.
fn look(probes: &probes::Probes) -> Result<(u64, probes::Totals), MapError> {
    const ATTEMPTS: usize = 4;
    let mut counters = probes.counters()?;
    let mut missing = 0;
    for _ in 0..ATTEMPTS {
        let before = counters.of(Counter::MadeUp);
        let left_out = probes.left_out();
        counters = probes.counters()?;
        let made_up = counters.of(Counter::MadeUp);
        missing = left_out.saturating_sub(made_up);
        if made_up == before {
            break;
        }
    }
    Ok((missing, counters))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_bounded_and_that_is_said() {
        let mut tally = Tally::new(Mono(0));
        let said: Vec<String> = (0..1000)
            .filter_map(|number| tally.note(number.to_string()))
            .collect();
        assert_eq!(said.len(), MOST_NOTES + 1);
        assert_eq!(said[MOST_NOTES - 1], "63");
        assert_eq!(
            said[MOST_NOTES],
            "more than 64 notes: the rest is not shown"
        );
        assert_eq!(tally.totals(Mono(0), &Summary::default()).notes, said);
    }

    #[test]
    fn a_bound_that_was_reached_makes_nothing_found_inconclusive() {
        let mut tally = Tally::new(Mono(0));
        let exit = |tally: &Tally| {
            let totals = tally.totals(Mono(0), &Summary::default());
            tally.verdict(&FailOn::default(), &totals, true).exit
        };
        assert_eq!(exit(&tally), Exit::Clean);
        // Notes come and go; a bound is said all the same.
        (0..1000).for_each(|number| drop(tally.note(number.to_string())));
        assert!(tally.reached(&Bound::Processes));
        assert!(!tally.reached(&Bound::Processes));
        assert_eq!(exit(&tally), Exit::Inconclusive);
        tally.findings.insert(Code::RingFull, 1);
        assert_eq!(exit(&tally), Exit::Clean);
    }
}
