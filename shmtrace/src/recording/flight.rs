//! The flight recorder: the last seconds in memory, written out around a finding.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
};

use anyhow::Context as _;
use shmtrace_engine::{
    Code, Finding, Mono, ProcId, State,
    input::{Input, Topology},
};

use super::{Header, Step, background::Background};
use crate::rights;

/// How much of the time before a finding is kept, ns.
const BEFORE: u64 = 5_000_000_000;
/// How much of the time after a finding is added, ns.
const AFTER: u64 = 2_000_000_000;
/// Steps kept at most: a step is some hundred bytes, so this bounds the memory to some ten MiB.
const MOST_STEPS: usize = 100_000;
/// So many steps of who is who are kept, however many of them are out of date.
const LEAST_TOPOLOGY: usize = 1024;
/// Files written at most in one watch: a broken transport must not fill the disk.
const MOST_FILES: u32 = 64;

/// Keeps the last seconds, and writes them to a directory when a finding is proven.
pub struct FlightRecorder {
    directory: PathBuf,
    header: Header,
    /// What a recording must begin with to make sense: who is who.
    topology: Vec<Step>,
    /// How many of these there may be before those that are out of date go.
    most_topology: usize,
    recent: VecDeque<(Mono, Step)>,
    /// What was not recorded, each once.
    notes: BTreeSet<String>,
    unsaid: Vec<String>,
    now: Mono,
    /// The recording of the latest finding, until when there is something to add, and those before it that are still written.
    open: Option<(Background, Mono)>,
    closed: Vec<Background>,
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
            most_topology: LEAST_TOPOLOGY,
            recent: VecDeque::new(),
            notes: BTreeSet::new(),
            unsaid: Vec::new(),
            now,
            open: None,
            closed: Vec::new(),
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
            if self.topology.len() > self.most_topology {
                keep_present(&mut self.topology);
                self.most_topology = LEAST_TOPOLOGY.max(2 * self.topology.len());
            }
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
        if let Some((recording, until)) = &mut self.open {
            recording.step(step.clone())?;
            if self.now >= *until
                && let Some((mut recording, _)) = self.open.take()
            {
                recording.close()?;
                self.closed.push(recording);
            }
        }
        while let Some(done) = self.closed.iter().position(Background::is_done) {
            self.closed.swap_remove(done).finish()?;
        }
        Ok(())
    }

    /// Waits until everything is written.
    pub fn finish(&mut self) -> anyhow::Result<()> {
        let open = self.open.take().map(|(recording, _)| recording);
        for mut recording in self.closed.drain(..).chain(open) {
            recording.finish().context("cannot write a recording")?;
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
        let recording = Background::start(file, &self.header, self.recent())
            .with_context(|| format!("cannot write to {}", path.display()))?;
        self.open = Some((recording, finding.at.plus(AFTER)));
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

    /// What led to this moment.
    fn recent(&self) -> Vec<Step> {
        let begun = self.recent.front().map_or(self.now, |(at, _)| *at);
        // The history before is missing, and a replay must know it: as if shmtrace had been attached then.
        let known = self.topology.iter().map(|step| match step {
            Step::Attached(_) => Step::Attached(begun),
            other => other.clone(),
        });
        let recent = self.recent.iter().map(|(_, step)| step);
        let recent = recent
            .filter(|step| !matches!(step, Step::Attached(_) | Step::Input(Input::Topology(_))));
        known.chain(recent.cloned()).collect()
    }
}

/// Drops what says nothing of hubs that are still there and of their peers' processes.
fn keep_present(topology: &mut Vec<Step>) {
    let (mut peers, mut gone, mut exited) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    for (at, step) in topology.iter().enumerate() {
        match step {
            Step::Input(Input::Topology(Topology::Peer(peer))) => {
                peers.insert((peer.hub, peer.peer), (at, peer.plugin, peer.host));
            }
            Step::Input(Input::Topology(Topology::Hub { hub, .. })) => drop(gone.remove(hub)),
            Step::Input(Input::Topology(Topology::HubGone { hub })) => drop(gone.insert(*hub)),
            Step::Input(Input::Topology(Topology::ProcessExited { proc, .. })) => {
                exited.insert(*proc);
            }
            _ => {}
        }
    }
    peers.retain(|(hub, _), _| !gone.contains(hub));
    let latest: BTreeSet<usize> = peers.values().map(|(at, ..)| *at).collect();
    let parts = |(_, plugin, host): &(_, Option<ProcId>, Option<ProcId>)| [*plugin, *host];
    let named: BTreeSet<ProcId> = peers.values().flat_map(parts).flatten().collect();
    let mut at = 0;
    topology.retain(|step| {
        at += 1;
        let Step::Input(Input::Topology(topology)) = step else {
            return true;
        };
        match topology {
            Topology::Peer(_) => latest.contains(&(at - 1)),
            Topology::Hub { hub, .. } | Topology::HubGone { hub } => !gone.contains(hub),
            Topology::Process { proc, .. } | Topology::ProcessExited { proc, .. } => {
                named.contains(proc) || !exited.contains(proc)
            }
        }
    });
}

fn file_name(number: u32, code: Code) -> String {
    format!("{number:03}-{}.shmtrace", code.as_str())
}

#[cfg(test)]
mod tests {
    use shmtrace_engine::{HubId, PeerId, input::PeerBinding};

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
    fn who_is_who_is_known_of_the_present_only() {
        let folder = tempfile::tempdir().unwrap();
        let mut flight = FlightRecorder::new(folder.path().to_owned(), header());
        let mut tell = |topology| {
            flight
                .step(&Step::Input(Input::Topology(topology)))
                .unwrap();
        };
        let hub = HubId(1);
        let host = ProcId { pid: 1, start: 1 };
        let path = String::new;
        tell(Topology::Hub { hub, path: path() });
        for start in 1..5000 {
            let plugin = ProcId { pid: 2, start };
            tell(Topology::Process {
                proc: plugin,
                name: path(),
            });
            tell(Topology::Peer(PeerBinding {
                hub,
                peer: PeerId(3),
                name: path(),
                plugin: Some(plugin),
                host: Some(host),
                host_end: None,
                plugin_end: None,
                flags: 1,
                certain: true,
            }));
            tell(Topology::ProcessExited {
                proc: plugin,
                at: Mono(start),
            });
            let brief = HubId(1 + u32::try_from(start).unwrap());
            tell(Topology::Hub {
                hub: brief,
                path: path(),
            });
            tell(Topology::HubGone { hub: brief });
        }
        assert!(
            flight.topology.len() <= LEAST_TOPOLOGY,
            "{}",
            flight.topology.len()
        );
        let mut left = flight.topology.clone();
        keep_present(&mut left);
        assert_eq!(
            left.len(),
            4,
            "the hub, its peer, that one's process and its end: {left:?}"
        );
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
