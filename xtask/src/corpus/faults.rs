//! Planted faults: trials, several at a time, and what they come to.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    process::{Pid, Signal, kill_process},
    time::{ClockId, clock_gettime},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Corpus,
    cases::{self, Case, Expected},
    folder,
    machine::{Source, Watch},
    sim::{Dice, Said, Scene, Speaker, Talker},
};
use crate::workspace;

/// How long a fault may stay unseen.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a moment may take to come.
const PLANTING: Duration = Duration::from_secs(40);
/// How long further findings are listened to, once the right one is there.
const LINGER: Duration = Duration::from_millis(150);

/// What a campaign came to.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Faults {
    pub(crate) groups: BTreeMap<String, Group>,
}

/// The trials of a fault, with the run that they are of.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Group {
    pub(crate) source: Source,
    pub(crate) trials: Vec<Trial>,
}

/// What planting a fault once came to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Trial {
    pub(crate) name: String,
    pub(crate) seed: u64,
    /// It could not be planted, or somebody ended early: nothing was tried.
    pub(crate) failed: Option<String>,
    /// Code, cause and state of the first finding that is not a mere suspicion, if there was any.
    pub(crate) first: Option<String>,
    pub(crate) class_right: bool,
    pub(crate) place_right: bool,
    pub(crate) cause: Cause,
    /// From the moment when the fault was in place.
    pub(crate) delay_us: u64,
    /// How long the fault must last by the detector's own rule.
    pub(crate) lasts_us: u64,
    /// Findings beside the right one.
    pub(crate) others: Vec<String>,
    pub(crate) lost: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Cause {
    Right,
    #[default]
    Unknown,
    Wrong,
}

impl Trial {
    pub(crate) fn good(&self) -> bool {
        self.failed.is_none() && self.class_right && self.place_right && self.cause != Cause::Wrong
    }
}

impl Faults {
    pub(crate) fn wrong(&self) -> usize {
        self.trials().filter(|trial| !trial.good()).count()
    }

    pub(crate) fn trials(&self) -> impl Iterator<Item = &Trial> + Clone {
        self.groups.values().flat_map(|group| &group.trials)
    }

    /// Takes over what another run has for faults that this one left out.
    pub(crate) fn complete(&mut self, before: Self) {
        for (name, group) in before.groups {
            self.groups.entry(name).or_insert(group);
        }
    }
}

/// Plants everything that was asked for.
pub(crate) fn campaign(corpus: &Corpus) -> Result<Faults> {
    let programs = workspace::built("release");
    let mut cases = Case::all(&programs)?;
    cases.retain(|case| corpus.wants(&case.name()));
    let trials = cases::trials(cases, corpus.runs, corpus.seed, corpus.each_variant);
    let records = corpus.record.then(|| folder().join("recordings"));
    if let Some(records) = &records {
        std::fs::create_dir_all(records)
            .with_context(|| format!("cannot create {}", records.display()))?;
    }
    let watch = Watch::start();
    let next = AtomicUsize::new(0);
    let done: Mutex<BTreeMap<usize, Trial>> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..corpus.jobs.max(1) {
            scope.spawn(|| {
                // Relaxed: the number itself is all that is shared.
                while let Some((index, (case, seed))) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    trials.get(index).map(|trial| (index, trial))
                } {
                    let trial = attempt(&programs, case, *seed, records.as_deref());
                    tell(index, trials.len(), &trial);
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    done.insert(index, trial);
                }
            });
        }
    });
    let source = Source {
        command: corpus.shown("faults"),
        load: watch.load(),
    };
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for (index, trial) in done.into_inner().unwrap_or_else(PoisonError::into_inner) {
        let group = groups.entry(trials[index].0.group()).or_default();
        group.source = source.clone();
        group.trials.push(trial);
    }
    Ok(Faults { groups })
}

fn tell(index: usize, all: usize, trial: &Trial) {
    if index.is_multiple_of(100) {
        eprintln!("trial {index} of {all}: {}", trial.name);
    }
    if !trial.good() || !trial.others.is_empty() {
        eprintln!(
            "{} seed {}: {}first {}, others {:?}",
            trial.name,
            trial.seed,
            trial
                .failed
                .as_ref()
                .map_or(String::new(), |why| format!("failed: {why}; ")),
            trial.first.as_deref().unwrap_or("nothing"),
            trial.others
        );
    }
}

/// One trial, from start to end.
fn attempt(programs: &Path, case: &Case, seed: u64, records: Option<&Path>) -> Trial {
    let record = records.map(|folder| {
        let name = case.name().replace([' ', '(', ')', '>'], "");
        folder.join(format!("{name}-{seed}.rec"))
    });
    let trial = plant(programs, case, seed, record.as_ref()).unwrap_or_else(|error| Trial {
        failed: Some(format!("{error:#}")),
        ..Trial::default()
    });
    if let Some(record) = record
        && trial.good()
    {
        // One that was never written is gone already.
        let _ = std::fs::remove_file(record);
    }
    Trial {
        name: case.name(),
        seed,
        ..trial
    }
}

fn plant(programs: &Path, case: &Case, seed: u64, record: Option<&PathBuf>) -> Result<Trial> {
    let wanted = cases::expected(&case.kind)
        .with_context(|| format!("no finding is known for {}", case.kind))?;
    let scene = Scene::new(programs);
    let mut host = scene.host(case.program, &case.host_args(seed))?;
    let mut heard = Heard::new(case.name());
    heard.until(&scene, PLANTING, |said| {
        said.speaker == Speaker::Sim && word(said, "event") == Some("ready")
    })?;
    let mut options = case.tracing();
    if let Some(record) = record {
        options.extend(["--record".to_owned(), record.display().to_string()]);
    }
    let mut tracer = scene.tracer(host.pid(), &options)?;
    heard.until(&scene, PLANTING, |said| {
        said.speaker == Speaker::Tracer && word(said, "type") == Some("header")
    })?;
    let mut dice = Dice::new(!seed);
    thread::sleep(Duration::from_millis(20 + dice.below(200)));
    host.go()?;
    if case.variant.as_deref() == Some("killed") {
        heard.kill_one(&mut dice)?;
    }
    heard.observe(&scene, &wanted)?;
    thread::sleep(LINGER);
    tracer.interrupt()?;
    heard.rest(&scene);
    tracer.end()?;
    Talker::end(host)?;
    heard.judged(&wanted)
}

/// What both said so far.
struct Heard {
    name: String,
    fault: Option<Value>,
    findings: Vec<Value>,
    plugins: Vec<Value>,
    lost: u64,
}

impl Heard {
    fn new(name: String) -> Self {
        Self {
            name,
            fault: None,
            findings: Vec::new(),
            plugins: Vec::new(),
            lost: 0,
        }
    }

    fn take_in(&mut self, said: &Said) {
        let Some(line) = &said.line else { return };
        match said.speaker {
            Speaker::Sim if line["event"] == "fault" => self.fault = Some(line.clone()),
            Speaker::Sim if line["event"] == "plugin" => self.plugins.push(line.clone()),
            Speaker::Tracer if line["type"] == "summary" => {
                self.lost += line["lost"].as_u64().unwrap_or_default();
            }
            // A suspicion may turn out to be nothing, and an end or a recovery belongs to what was found before.
            Speaker::Tracer if line["type"] == "finding" => {
                let state = line["state"].as_str().unwrap_or_default();
                if ["missed", "masked", "inconclusive"].contains(&state) {
                    self.findings.push(line.clone());
                }
            }
            _ => {}
        }
    }

    /// Listens until a line comes.
    fn until(
        &mut self,
        scene: &Scene<'_>,
        time: Duration,
        wanted: impl Fn(&Said) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + time;
        loop {
            let said = next(scene, deadline).context("nothing is said")?;
            self.take_in(&said);
            if wanted(&said) {
                return Ok(());
            }
            if said.line.is_none() {
                bail!("{:?} ended early", said.speaker);
            }
        }
    }

    /// Waits for the fault and for the finding, in whichever order they are told.
    fn observe(&mut self, scene: &Scene<'_>, wanted: &Expected) -> Result<()> {
        let patience = if self.fault.is_some() {
            PATIENCE
        } else {
            PLANTING
        };
        let mut deadline = Instant::now() + patience;
        loop {
            if self.fault.is_some() && self.findings.iter().any(|finding| is(finding, wanted)) {
                return Ok(());
            }
            let Some(said) = next(scene, deadline) else {
                break;
            };
            if said.line.is_none() {
                bail!("{:?} ended early", said.speaker);
            }
            let planted = self.fault.is_some();
            self.take_in(&said);
            if !planted && self.fault.is_some() {
                deadline = Instant::now() + PATIENCE;
            }
        }
        let planted = self.fault.as_ref().map(drop);
        planted.with_context(|| format!("{} was not planted", self.name))
    }

    /// Everything up to the tracer's last line.
    fn rest(&mut self, scene: &Scene<'_>) {
        let deadline = Instant::now() + PATIENCE;
        while let Some(said) = next(scene, deadline) {
            self.take_in(&said);
            if said.speaker == Speaker::Tracer && said.line.is_none() {
                return;
            }
        }
    }

    /// The one fault that comes from outside the stand-in: a plugin is killed at a random moment.
    fn kill_one(&mut self, dice: &mut Dice) -> Result<()> {
        thread::sleep(Duration::from_millis(dice.below(300)));
        let plugin = dice.one_of(&self.plugins).clone();
        let pid = plugin["pid"].as_u64().context("a plugin without a pid")?;
        let pid = Pid::from_raw(i32::try_from(pid)?).context("a plugin with pid 0")?;
        kill_process(pid, Signal::KILL).context("cannot kill a plugin")?;
        self.fault = Some(json!({"peer": plugin["peer"], "mono_ns": now_ns()}));
        Ok(())
    }

    fn judged(&self, wanted: &Expected) -> Result<Trial> {
        let fault = self.fault.as_ref().context("no fault was planted")?;
        let right = self.findings.iter().position(|finding| is(finding, wanted));
        let mut trial = Trial {
            first: self.findings.first().map(short),
            class_right: right == Some(0),
            delay_us: PATIENCE.as_secs() * 1_000_000,
            lasts_us: u64::try_from(wanted.lasts.as_micros())?,
            lost: self.lost,
            others: self
                .findings
                .iter()
                .enumerate()
                .filter(|(index, _)| Some(*index) != right)
                .map(|(_, finding)| short(finding))
                .collect(),
            ..Trial::default()
        };
        if let Some(finding) = right.map(|right| &self.findings[right]) {
            let at = |value: &Value| value["mono_ns"].as_u64().unwrap_or_default();
            trial.delay_us = at(finding).saturating_sub(at(fault)) / 1000;
            // Some findings are about more than one lane.
            trial.place_right = finding["peer"].is_null() || finding["peer"]["id"] == fault["peer"];
            trial.cause = match (wanted.cause, finding["cause"].as_str()) {
                (None, _) => Cause::Right,
                (Some(expected), Some(said)) if expected == said => Cause::Right,
                (Some(_), None | Some("unknown")) => Cause::Unknown,
                (Some(_), Some(_)) => Cause::Wrong,
            };
        }
        Ok(trial)
    }
}

/// Whether a finding is of the class that is wanted, in the state that is wanted.
fn is(finding: &Value, wanted: &Expected) -> bool {
    finding["code"] == wanted.code && finding["state"] == wanted.state
}

fn short(finding: &Value) -> String {
    let word = |key: &str| finding[key].as_str().unwrap_or("-").to_owned();
    format!(
        "{} {} {} of peer {}",
        word("state"),
        word("code"),
        word("cause"),
        finding["peer"]["id"]
    )
}

/// Now, by the clock of the records.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let parts = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
    parts.0.unwrap_or_default() * 1_000_000_000 + parts.1.unwrap_or_default()
}

/// The next line of anybody, until a moment.
fn next(scene: &Scene<'_>, deadline: Instant) -> Option<Said> {
    scene
        .lines
        .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        .ok()
}

fn word<'a>(said: &'a Said, key: &str) -> Option<&'a str> {
    said.line.as_ref()?[key].as_str()
}
