//! The flight recorder: the last seconds in memory, written out around a finding.

use std::{collections::VecDeque, fs::File, path::PathBuf};

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
    /// Steps left out because there were too many.
    skipped: u64,
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
            skipped: 0,
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
            self.skipped += u64::from(self.recent.len() > MOST_STEPS);
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
        if !proven || self.open.is_some() || self.written >= MOST_FILES {
            return Ok(None);
        }
        self.written += 1;
        let name = file_name(self.written, finding.code);
        let path = self.directory.join(&name);
        let file = rights::create_file(&self.directory, &name)
            .with_context(|| format!("cannot create recording {}", path.display()))?;
        self.open = Some((self.write_recent(file)?, finding.at.plus(AFTER)));
        Ok(Some(path))
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
