//! The flight recorder: the last seconds in memory, written out around a finding.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::File,
    path::PathBuf,
};

use anyhow::Context as _;
use shmtrace_engine::{Code, Finding, Mono, State, input::Input};

use super::{Header, Recorder, Step};
use crate::rights;

/// How much of the time before a finding is kept, ns.
const BEFORE: u64 = 5_000_000_000;
/// How much of the time after a finding is added, ns.
const AFTER: u64 = 2_000_000_000;
/// Steps kept at most: a step is some hundred bytes, so this bounds the memory to some ten MiB.
const MOST_STEPS: usize = 100_000;
/// Files written at most in one watch: a broken transport must not fill the disk.
const MOST_FILES: u32 = 64;

/// Keeps the last seconds, and writes them to a directory when a finding is proven.
pub struct FlightRecorder {
    directory: PathBuf,
    header: Header,
    /// What a recording must begin with to make sense: who is who.
    topology: Vec<Step>,
    recent: VecDeque<(Mono, Step)>,
    /// What was not recorded, each once.
    notes: BTreeSet<String>,
    unsaid: Vec<String>,
    now: Mono,
    open: Option<(Recorder, Mono)>,
    written: u32,
}

impl FlightRecorder {
    /// Writes to files in `directory`, which it creates when needed.
    pub fn new(directory: PathBuf, header: Header) -> Self {
        let now = Mono(header.start_mono_ns);
        Self {
            directory,
            header,
            topology: Vec::new(),
            recent: VecDeque::new(),
            notes: BTreeSet::new(),
            unsaid: Vec::new(),
            now,
            open: None,
            written: 0,
        }
    }

    /// Takes note of a step.
    pub fn step(&mut self, step: &Step) -> anyhow::Result<()> {
        if let Step::Advance { now, .. } = step {
            self.now = *now;
        }
        if matches!(step, Step::Attached(_) | Step::Input(Input::Topology(_))) {
            self.topology.push(step.clone());
        }
        self.recent.push_back((self.now, step.clone()));
        while self.recent.len() > MOST_STEPS
            || self
                .recent
                .front()
                .is_some_and(|(at, _)| self.now.since(*at) > BEFORE)
        {
            self.recent.pop_front();
        }
        if let Some((recorder, until)) = &mut self.open {
            recorder.step(step)?;
            if self.now >= *until {
                recorder.flush()?;
                self.open = None;
            }
        }
        Ok(())
    }

    /// A finding was made: writes what led to it, and goes on for a while. Returns the file.
    pub fn finding(&mut self, finding: &Finding) -> anyhow::Result<Option<PathBuf>> {
        let proven = matches!(finding.state, State::Missed | State::Masked);
        if !proven || self.open.is_some() {
            return Ok(None);
        }
        if self.written >= MOST_FILES {
            self.note(format!(
                "more than {MOST_FILES} findings to record: those after them are not recorded"
            ));
            return Ok(None);
        }
        if self.recent.len() >= MOST_STEPS {
            self.note(format!(
                "more than {MOST_STEPS} steps in {} s: recordings begin later before their findings",
                BEFORE / 1_000_000_000
            ));
        }
        self.written += 1;
        let name = file_name(self.written, finding.code);
        let path = self.directory.join(&name);
        let file = rights::create_file(&self.directory, &name)
            .with_context(|| format!("cannot create recording {}", path.display()))?;
        self.open = Some((self.write_recent(file)?, finding.at.plus(AFTER)));
        Ok(Some(path))
    }

    fn note(&mut self, note: String) {
        if self.notes.insert(note.clone()) {
            self.unsaid.push(note);
        }
    }

    /// What was not recorded and why, each once.
    pub fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.unsaid)
    }

    fn write_recent(&self, file: File) -> anyhow::Result<Recorder> {
        let mut recorder = Recorder::new(file, &self.header)?;
        let begun = self.recent.front().map_or(self.now, |(at, _)| *at);
        // The history before is missing, and a replay must know it: as if shmtrace had been attached then.
        for step in &self.topology {
            match step {
                Step::Attached(_) => recorder.step(&Step::Attached(begun))?,
                other => recorder.step(other)?,
            }
        }
        for (_, step) in &self.recent {
            if !matches!(step, Step::Attached(_) | Step::Input(Input::Topology(_))) {
                recorder.step(step)?;
            }
        }
        recorder.flush()?;
        Ok(recorder)
    }
}

fn file_name(number: u32, code: Code) -> String {
    format!("{number:03}-{}.shmtrace", code.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            recording: String::new(),
            format: super::super::FORMAT,
            version: String::new(),
            start_time: String::new(),
            start_mono_ns: 0,
            kernel: String::new(),
            roots: Vec::new(),
            grace_ns: 0,
            expect_progress_ns: None,
        }
    }

    fn finding(id: u64, at: Mono) -> Finding {
        Finding {
            id,
            at,
            code: Code::RingFull,
            cause: None,
            state: State::Missed,
            hub: None,
            lane: None,
            peer: None,
            plugin: None,
            host: None,
            ring: None,
            capacity: None,
            doorbell_pending: None,
            stuck_ns: 0,
            count: 1,
            threads: Vec::new(),
            timeline: Vec::new(),
            rule: "",
            explanation: String::new(),
            note: None,
            culprit: None,
        }
    }

    fn advance(flight: &mut FlightRecorder, now: Mono) {
        let step = Step::Advance {
            now,
            complete_until: now,
        };
        flight.step(&step).unwrap();
    }

    #[test]
    fn files_are_bounded_and_that_is_said_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut flight = FlightRecorder::new(folder.path().to_owned(), header());
        for number in 1..=u64::from(MOST_FILES) + 3 {
            let now = Mono(number * (BEFORE + AFTER));
            advance(&mut flight, now);
            let file = flight.finding(&finding(number, now)).unwrap();
            assert_eq!(file.is_some(), number <= MOST_FILES.into());
        }
        let files = folder.path().read_dir().unwrap().count();
        assert_eq!(files, MOST_FILES as usize);
        let notes = flight.notes();
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].starts_with("more than 64 findings to record"));
        assert_eq!(flight.notes(), [""; 0]);
    }

    #[test]
    fn steps_are_bounded_and_a_short_recording_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let mut flight = FlightRecorder::new(folder.path().to_owned(), header());
        for number in 0..MOST_STEPS as u64 + 10 {
            advance(&mut flight, Mono(number));
        }
        assert_eq!(flight.recent.len(), MOST_STEPS);
        let now = Mono(MOST_STEPS as u64 + 10);
        assert!(flight.finding(&finding(1, now)).unwrap().is_some());
        let notes = flight.notes();
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].starts_with("more than 100000 steps in 5 s"));
    }
}
