//! A live watch: probes, tree, discovery and engine driven by one loop.
//!
//! ```text
//!   probes --records--> decode --events---\
//!   counters ---------> losses ------------> engine --findings--> report
//!   discovery --topology, samples---------/   |
//!        ^                                    | requests
//!        \----------- observer <--------------/
//! ```
//! The loop wakes every few milliseconds (more often while the rings of records fill up fast, or when the engine wants to look again),
//! takes what is there, looks at the rings if there was anything, and sleeps. While nothing happens at all it rests until the next
//! record wakes it. Nothing in it waits for the traced processes.

mod alarm;
mod canary;
mod decode;
mod directory;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod intake;
mod judge;
mod options;
mod pace;
mod replay;
mod setup;
mod tables;
mod tally;
mod tree;

use std::time::Duration;

use anyhow::Context as _;
use shmtrace_common::Record;
use shmtrace_engine::{
    Mono, Output, Request,
    input::{Input, Sample, Topology},
};
use tokio::time::Instant;

use crate::{
    bounds::Bound,
    canary::Belongings,
    discover::{Discovery, Hint},
    observe::{Observer, mono_now},
    probes::Probes,
    recording::{self, Step},
    report::{Header, Report},
    rights::Helper,
};

pub use directory::Directory;
pub use options::{FailOn, Options};
pub use replay::replay;
pub use tally::{Totals, Verdict};

use alarm::Alarm;
use canary::Minded;
use judge::Judge;
use pace::Pace;
use tally::Tally;
use tree::Tree;

pub(crate) use tree::MOST_FDS_REMEMBERED;

/// How often the rings of records and the rings of the hubs are looked at. A stuck lane is first suspected after two
/// looks, so this bounds how late a finding is; each costs about 20 us.
const TICK: Duration = Duration::from_millis(5);
/// The same while the rings of records fill up fast, or doorbells are matched with their peers: each look between two calls
/// tells something then.
const BUSY_TICK: Duration = Duration::from_millis(1);
/// After so long without a record, and with every ring empty, it rests until a record wakes it, ns: all records have been
/// judged by then.
const CALM: u64 = 2 * LATEST_RECORD;
/// How long it rests at most: what leaves no record is found by looking. A thread that has published and sleeps has left one.
const REST: Duration = Duration::from_millis(250);
/// How often processes, mappings and sockets are compared with what is known, without a hint that they changed.
const REFRESH: u64 = 100_000_000;
/// How often the lanes are looked at while no record comes and nothing waits in them.
const SWEEP: u64 = 100_000_000;
/// What happened while sends on closed fds were not seen can be the cause of what is found so much later, ns.
const UNSEEN: u64 = 5_000_000_000;
/// Records may be handed over this much later than they were made: an interrupted writer holds back its CPU's ring.
/// Measured: 0.3 ms on this kernel, 16 ms in a virtual machine whose CPU is taken away.
const LATEST_RECORD: u64 = 20_000_000;
/// How often the probes' counters are read, ns.
const COUNT: u64 = 100_000_000;
/// How often it is looked whether processes ended without a record, ns.
const REAP: u64 = 1_000_000_000;
/// How often a sign of life is shown.
const SIGN_OF_LIFE: u64 = 250_000_000;

/// How a watch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The last process of the trees ended.
    TreeGone,
    /// The duration was over, or it was told to stop.
    Stopped,
}

/// A watch in progress.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, no states of one machine"
)]
pub struct Session<'a> {
    options: &'a Options,
    probes: Probes,
    tree: Tree,
    discovery: Discovery,
    observer: Observer,
    judge: Judge,
    tally: Tally,
    report: &'a mut dyn Report,
    /// Not reported yet.
    notes: Vec<String>,
    bounds: Vec<Bound>,
    /// A process rings in ways that the probes do not see here.
    some_hide: bool,
    samples: Vec<Sample>,
    records: Vec<Record>,
    refreshed: Mono,
    /// Something happened that the next refresh should see soon.
    hinted: bool,
    /// Forks, exits and the like may have been among the records lost since the last refresh.
    lost_since_refresh: bool,
    shown_alive: Mono,
    reaped: Mono,
    /// Every record from before has been taken.
    last_drain: Mono,
    /// Records that had found no room by then.
    lost: u64,
    /// When the probes' counters were read last.
    counted: Mono,
    /// When the lanes were looked at last, and whether an entry lay in one of them.
    swept: Mono,
    entries_wait: bool,
    /// When there was a record last.
    stirred: Mono,
    /// Records came faster than usual.
    busy: bool,
    pace: Pace,
    canary: Option<Minded>,
    belongings: Belongings,
    /// Does what this process gave up the right to.
    _helper: Option<Helper>,
}

impl<'a> Session<'a> {
    /// Attaches to the trees and takes a first look. Processes notice nothing of it.
    pub fn start(options: &'a Options, report: &'a mut dyn Report) -> anyhow::Result<Self> {
        tree::check_roots(&options.roots)?;
        setup::run_before_the_traced();
        let mut probes = Probes::attach(options.buffer_bytes, options.failed_sends)?;
        tree::check_rights(&options.roots)?;
        let mut tree = Tree::adopt(&options.roots, &mut probes)?;
        let now = mono_now();
        let kernel = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        let judge = Judge::live(options, &recording::Header::of_watch(options, &kernel))?;
        let mut limits = setup::in_words(&probes);
        // From here on things are read that others write.
        let canary = options
            .canary
            .map(|every| Minded::start(every, now, &mut tree, &mut probes))
            .transpose();
        let canary = canary.unwrap_or_else(|error| {
            limits.push(format!(
                "no canary: {error:#}; remedy: see that /proc/self/exe can be executed"
            ));
            None
        });
        let (canary, belongings) = canary.unzip();
        let helper = setup::give_up_rights(options, &mut limits)?;
        let observer = match options.expect_progress_ns {
            Some(_) => Observer::new(),
            None => Observer::new().sparing_threads(),
        };
        let mut session = Self {
            options,
            probes,
            tree,
            discovery: Discovery::new(),
            observer,
            judge,
            tally: Tally::new(now),
            report,
            notes: Vec::new(),
            bounds: Vec::new(),
            some_hide: false,
            samples: Vec::new(),
            records: Vec::new(),
            refreshed: Mono(0),
            hinted: true,
            lost_since_refresh: false,
            shown_alive: now,
            reaped: now,
            last_drain: now,
            lost: 0,
            counted: now,
            swept: Mono(0),
            entries_wait: false,
            stirred: now,
            busy: false,
            pace: Pace::default(),
            canary,
            belongings: belongings.unwrap_or_default(),
            _helper: helper,
        };
        session.step_engines(&Step::Attached(now))?;
        // Whoever reads the header may count on it that everything from now on is seen.
        session.refresh(mono_now())?;
        session.sweep(mono_now())?;
        session.report.header(&Header {
            roots: options.roots.clone(),
            kernel,
            grace_ns: options.grace_ns,
            limits,
        })?;
        session.step()?;
        Ok(session)
    }

    /// Runs until `stop` completes, the duration is over, or the last process ended.
    pub async fn run(&mut self, stop: impl Future<Output = ()>) -> anyhow::Result<Ended> {
        let deadline = self
            .options
            .duration
            .map(|duration| Instant::now() + duration);
        let mut wakeups = self.probes.wakeups()?;
        let mut alarm = Alarm::new().context("cannot make a timer")?;
        let over = wait_until(deadline);
        tokio::pin!(stop, over);
        loop {
            let now = mono_now();
            let often = self.busy || self.discovery.is_matching(now);
            let rests = self.is_calm(now) && self.probes.rest();
            let tick = match (often, rests) {
                (true, _) => BUSY_TICK,
                (false, false) => TICK,
                (false, true) => REST,
            };
            let canary = self.canary.as_ref();
            let canary = canary.and_then(|canary| canary.judge.next_timeout());
            let pause = [self.judge.next_timeout(), canary]
                .into_iter()
                .flatten()
                .min()
                .map_or(tick, |at| tick.min(Duration::from_nanos(at.since(now))));
            tokio::select! {
                () = &mut stop => return Ok(Ended::Stopped),
                () = &mut over => return Ok(Ended::Stopped),
                rung = alarm.after(pause) => rung.context("cannot set a timer")?,
                woken = wakeups.next(), if rests => woken?,
            }
            if rests {
                self.probes.wake_up();
            }
            self.step()?;
            if self.tree.pids().all(|pid| self.belongings.has(pid)) {
                return Ok(Ended::TreeGone);
            }
        }
    }

    /// Nothing happens, and nothing is waited for.
    fn is_calm(&self, now: Mono) -> bool {
        now.since(self.stirred) >= CALM
            && !self.entries_wait
            && !self.hinted
            && !self.discovery.wants_rings()
    }

    /// Detaches, judges what is still there, reports the summary.
    pub fn finish(mut self) -> anyhow::Result<Verdict> {
        self.step()?;
        let now = mono_now();
        self.count(now)?;
        self.step_engines(&Step::Advance {
            now,
            complete_until: now,
        })?;
        self.serve(now)?;
        let totals = self.totals(now);
        // The report may go to a slow reader: nothing is traced any more by then.
        drop(self.probes);
        drop(self.canary);
        self.judge.finish()?;
        self.report.summary(&totals, &self.judge.names)?;
        Ok(self.tally.verdict(
            &self.options.fail_on,
            &totals,
            self.judge.names.hubs().next().is_some(),
        ))
    }

    /// One turn: everything that is there now, up to date, judged and reported.
    fn step(&mut self) -> anyhow::Result<()> {
        let now = mono_now();
        let stirred = self.drain(now)?;
        if stirred {
            self.stirred = now;
        }
        if self.hinted || now.since(self.refreshed) >= REFRESH {
            self.refresh(now)?;
        }
        self.say_notes()?;
        let now = mono_now();
        if self.discovery.wants_rings() {
            self.hinted |= self.discovery.infer(now);
        }
        if stirred || self.entries_wait || now.since(self.swept) >= SWEEP {
            self.sweep(now)?;
        }
        self.advance(now)?;
        self.serve(now)?;
        if now.since(self.reaped) >= REAP {
            self.reaped = now;
            for proc in self.tree.reap(&mut self.probes) {
                self.discovery.hint(Hint::Exited { pid: proc.pid });
                self.ended(proc, now)?;
            }
        }
        if now.since(self.shown_alive) >= SIGN_OF_LIFE {
            self.shown_alive = now;
            self.report.alive(&self.totals(now), &self.judge.names)?;
        }
        Ok(())
    }

    fn say_notes(&mut self) -> anyhow::Result<()> {
        for note in std::mem::take(&mut self.notes) {
            if let Some(note) = self.tally.note(note) {
                self.report.note(&note)?;
            }
        }
        for bound in std::mem::take(&mut self.bounds) {
            if self.tally.reached(&bound) {
                self.report.note(&bound.to_string())?;
            }
        }
        Ok(())
    }

    fn advance(&mut self, now: Mono) -> anyhow::Result<()> {
        self.step_engines(&Step::Advance {
            now,
            complete_until: Mono(self.last_drain.0.saturating_sub(LATEST_RECORD)),
        })
    }

    /// Finds what is new in the trees and tells engine and probes.
    fn refresh(&mut self, now: Mono) -> anyhow::Result<()> {
        self.refreshed = now;
        self.hinted = false;
        if std::mem::take(&mut self.lost_since_refresh) {
            self.discovery.hint(Hint::Lost);
            for proc in self.tree.resync(&mut self.probes) {
                self.ended(proc, now)?;
            }
        }
        if self.tally.processes_not_followed() > 0 {
            self.bounds.push(Bound::Processes);
        }
        if self.tree.forgot_fds() {
            self.bounds.push(Bound::FdsRemembered);
        }
        for pid in self.tree.stirred() {
            self.discovery.hint(Hint::Stirred { pid });
        }
        let mut live: Vec<u32> = self.tree.pids().collect();
        // So that names and numbers are given in the same order each time.
        live.sort_unstable();
        let changes = self.discovery.refresh(now, &live);
        for (pid, fd, socket) in self.discovery.sockets_seen(now) {
            if let (Some(member), Ok(fd)) = (self.tree.member(pid), i32::try_from(fd)) {
                member.saw_fd(fd, socket.0);
            }
        }
        self.notes.extend(changes.notes);
        self.bounds.extend(changes.bounds);
        self.tally.unsupported |= changes.unsupported;
        for topology in changes.topology {
            if let Topology::Process { proc, name } = &topology
                && self.probes.see_calls_only()
                && let Some(note) = setup::hidden_calls(*proc, name)
            {
                self.some_hide = true;
                self.notes.push(note);
            }
            self.tell(Input::Topology(topology))?;
        }
        for update in &changes.probes {
            if let Err(error) = self.tally.tables.apply(&mut self.probes, update) {
                tracing::warn!("cannot tell the probes of {update:?}: {error}");
            }
        }
        Ok(())
    }

    /// Answers the engine's requests and reports its findings.
    fn serve(&mut self, now: Mono) -> anyhow::Result<()> {
        while let Some(output) = self.judge.next() {
            match output {
                Output::Request(request) => self.look(request)?,
                Output::Finding(finding) => {
                    self.tally.finding(&finding);
                    self.judge.keep(&finding)?;
                    self.notes.extend(self.judge.notes());
                    if self.options.shows(&finding) {
                        self.report
                            .finding(&finding, &self.judge.names)
                            .context("cannot write the report")?;
                    }
                    continue;
                }
            }
            // An answer may settle things at once.
            self.advance(now.max(mono_now()))?;
        }
        self.mind_canary(now)
    }

    /// Whether sends may have left no record lately.
    fn failed_sends_unseen(&self) -> bool {
        let since = self.pace.fast_until();
        let lately = since.is_some_and(|at| mono_now().since(at) < UNSEEN);
        self.probes.may_miss_failed_sends(lately) || self.some_hide || self.tree.forgot_fds()
    }

    fn look(&mut self, request: Request) -> anyhow::Result<()> {
        match request {
            Request::ObserveLane(lane) => {
                if let Some(mut seen) = self.observer.lane(&mut self.discovery, lane) {
                    seen.failed_sends_unseen = self.failed_sends_unseen();
                    self.tell(Input::Lane(Box::new(seen)))?;
                }
            }
            Request::ObserveClosely(lane) => {
                if self.probes.can_be_left_out() {
                    self.count(mono_now())?;
                }
                if let Some(mut seen) = self.observer.lane_closely(&mut self.discovery, lane) {
                    seen.failed_sends_unseen = self.failed_sends_unseen();
                    self.tell(Input::Lane(Box::new(seen)))?;
                }
            }
            Request::ObserveHub(hub) => {
                if let Some(seen) = self.observer.hub(&mut self.discovery, hub) {
                    self.tell(Input::Hub(Box::new(seen)))?;
                }
            }
            Request::ObserveMemory => {
                let pids = self.tree.pids().filter(|pid| !self.belongings.has(*pid));
                let pids: Vec<u32> = pids.collect();
                for seen in self.observer.memory(&pids) {
                    self.tell(Input::Memory(seen))?;
                }
            }
        }
        Ok(())
    }
}

async fn wait_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
