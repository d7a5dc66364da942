//! `doctor --self-test`: each fault is planted in a private hub, by real processes, and a watch must find it.

use std::{
    io::{BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{limits::Check, teardown::Tree};

/// How long after it was planted a fault was found, or what was instead.
type Outcome = Result<Duration, String>;

/// The program that plants faults; it is installed beside this one.
const SIMULATOR: &str = "ddc-sim";
/// How long a host may take to get going, and a fault to be found. Slow machines need most of it.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long after its start the host makes the first call, at first and in later attempts. The watch must be attached by
/// then to learn the cause, and a machine that is too busy for that may also lose the records that the cause rests on: so
/// a fault that was not found is planted again, alone.
const HEAD_START: &str = "1s";
const HEAD_STARTS_ALONE: [&str; 2] = ["4s", "12s"];
/// How many hosts run at once at first.
const AT_ONCE: usize = 3;

/// A fault and the finding that it must lead to.
struct Planted {
    /// For people.
    name: &'static str,
    /// As the simulator takes it.
    fault: &'static str,
    code: &'static str,
    cause: Option<&'static str>,
    /// Being quiet is a fault here.
    expect_progress: bool,
}

const fn missed(name: &'static str, cause: &'static str) -> Planted {
    Planted {
        name,
        fault: cause,
        code: "missed-wakeup",
        cause: Some(cause),
        expect_progress: false,
    }
}

const fn class(name: &'static str, code: &'static str) -> Planted {
    Planted {
        name,
        fault: code,
        code,
        cause: None,
        expect_progress: false,
    }
}

const fn quiet(name: &'static str, code: &'static str) -> Planted {
    Planted {
        name,
        fault: code,
        code,
        cause: None,
        expect_progress: true,
    }
}

const FAULTS: [Planted; 15] = [
    missed("finds consumed-then-slept", "consumed-then-slept"),
    missed("finds rung-before-publish", "rung-before-publish"),
    missed("finds never-rung", "never-rung"),
    missed("finds ring-failed", "ring-failed"),
    missed("finds wrong-doorbell", "wrong-doorbell"),
    missed("finds stolen", "stolen"),
    class("finds not-draining", "not-draining"),
    class("finds consumer-blocked", "consumer-blocked"),
    quiet("finds never-enqueued", "never-enqueued"),
    quiet("finds unanswered", "unanswered"),
    class("finds ring-full", "ring-full"),
    class("finds slots-stuck", "slots-stuck"),
    class("finds ring-corrupt", "ring-corrupt"),
    class("finds peer-died", "peer-died"),
    class("finds memory-limit", "memory-limit"),
];

/// Plants and finds all of them, a few at a time.
pub(super) fn all() -> Vec<Check> {
    let (Ok(shmtrace), Some(simulator)) = (std::env::current_exe(), simulator()) else {
        let detail =
            format!("{SIMULATOR}, which plants the faults, is not beside shmtrace nor on PATH");
        return vec![Check::no(
            "self-test",
            detail,
            "build it with `cargo xtask build`, and put it there",
        )];
    };
    let outcomes = plant_all(&simulator, &shmtrace);
    let checks = FAULTS.iter().zip(outcomes).map(|(planted, outcome)| {
        let mut failed = Vec::new();
        let mut outcome = outcome;
        for head_start in HEAD_STARTS_ALONE {
            let Err(why) = outcome else { break };
            failed.push(why);
            outcome = plant_and_find(&simulator, &shmtrace, planted, head_start);
        }
        check(planted, outcome, &failed)
    });
    checks.collect()
}

/// Each of [`FAULTS`] once, a few at a time: what came of it, in their order.
fn plant_all(simulator: &Path, shmtrace: &Path) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut outcomes = Vec::new();
        // Relaxed: the number is all that is shared; joining the thread orders the outcomes.
        while let number = next.fetch_add(1, Ordering::Relaxed)
            && let Some(planted) = FAULTS.get(number)
        {
            let outcome = plant_and_find(simulator, shmtrace, planted, HEAD_START);
            outcomes.push((number, outcome));
        }
        outcomes
    };
    let mut all = vec![Err("the thread that planted it died".to_owned()); FAULTS.len()];
    thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        for (number, outcome) in workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap_or_default())
        {
            all[number] = outcome;
        }
    });
    all
}

/// `failed` = what came of earlier attempts.
fn check(planted: &Planted, outcome: Outcome, failed: &[String]) -> Check {
    match outcome {
        Ok(after) => {
            let after = Duration::from_millis(after.as_millis() as u64);
            let after = humantime::format_duration(after);
            let attempts = match failed.len() {
                0 => String::new(),
                before => format!(
                    ", at attempt {} (before: {})",
                    before + 1,
                    failed.join("; ")
                ),
            };
            let detail = format!("{after} after it was planted{attempts}");
            Check::yes(planted.name, detail)
        }
        Err(why) => Check::no(
            planted.name,
            format!("{why}, in {} attempts", failed.len() + 1),
            format!(
                "look at `{SIMULATOR} host --fault {}` with `shmtrace --verbose`, and report it",
                planted.fault
            ),
        ),
    }
}

fn simulator() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok()?.with_file_name(SIMULATOR);
    if beside.is_file() {
        return Some(beside);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(SIMULATOR))
        .find(|program| program.is_file())
}

fn plant_and_find(
    simulator: &Path,
    shmtrace: &Path,
    planted: &Planted,
    head_start: &str,
) -> Outcome {
    let fault = format!("{}:after=300", planted.fault);
    let mut host = Command::new(simulator);
    host.args([
        "host",
        "--plugins",
        "2",
        "--round-trips",
        "0",
        "--gap",
        "1ms",
    ]);
    host.args([
        "--start-delay",
        head_start,
        "--fault",
        &fault,
        "--fault-hold",
        "1m",
    ]);
    let mut host = Running::start(&mut host)?;
    host.wait_for(|line| line["event"] == "ready")
        .ok_or("the host did not get ready")?;

    let mut watch = Command::new(shmtrace);
    watch.args([
        "--format",
        "json",
        "--duration",
        "40s",
        "--pid-tree",
        &host.child.id().to_string(),
    ]);
    if planted.expect_progress {
        watch.args(["--expect-progress", "1s"]);
    }
    let mut watch = Running::start(&mut watch)?;
    // Written when the probes are attached.
    watch
        .wait_for(|line| line["type"] == "header")
        .ok_or("the watch did not start")?;
    let fault = host
        .wait_for(|line| line.get("fault").is_some())
        .ok_or("the fault was not planted")?;
    let since = fault["mono_ns"].as_u64().unwrap_or(0);
    let mut others = Vec::new();
    let found = watch.wait_for(|line| {
        if line["type"] != "finding" || line["state"] != "missed" {
            return false;
        }
        let right = line["code"] == planted.code
            && planted.cause.is_none_or(|cause| line["cause"] == cause);
        if !right {
            let cause = line["cause"]
                .as_str()
                .map(|cause| format!(" ({cause})"))
                .unwrap_or_default();
            others.push(format!(
                "{}{cause}",
                line["code"].as_str().unwrap_or_default()
            ));
        }
        // Another finding on the way to the right one is no harm; a wrong cause stays wrong.
        right || line["code"] == planted.code
    });
    let is_right = |finding: &Value| planted.cause.is_none_or(|cause| finding["cause"] == cause);
    match found {
        Some(finding) if is_right(&finding) => {
            let at = finding["mono_ns"].as_u64().unwrap_or(0);
            Ok(Duration::from_nanos(at.saturating_sub(since)))
        }
        _ if others.is_empty() => Err("planted, and not found".to_owned()),
        _ => Err(format!("planted, and only {} was found", others.join(", "))),
    }
}

/// A process that prints a JSON object a line, and ends with its whole tree when it is dropped.
struct Running {
    child: Child,
    lines: mpsc::Receiver<Value>,
}

impl Running {
    fn start(command: &mut Command) -> Result<Self, String> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command
            .spawn()
            .map_err(|e| format!("cannot run {command:?}: {e}"))?;
        let (sender, lines) = mpsc::channel();
        if let Some(output) = child.stdout.take() {
            thread::spawn(move || forward(output, &sender));
        }
        Ok(Self { child, lines })
    }

    /// The first line for which `is_it` holds; none if it does not come in time.
    fn wait_for(&mut self, mut is_it: impl FnMut(&Value) -> bool) -> Option<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let line = self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
                .ok()?;
            if is_it(&line) {
                return Some(line);
            }
        }
    }
}

fn forward(output: impl Read, lines: &mpsc::Sender<Value>) {
    for line in BufReader::new(output).lines() {
        let Ok(line) = line else { break };
        let Ok(line) = serde_json::from_str(&line) else {
            continue;
        };
        if lines.send(line).is_err() {
            break;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(mut tree) = Tree::gather(&[self.child.id()]) {
            let _left = tree.end(Signal::TERM, Duration::from_secs(2), |_| {});
        }
        let _status = self.child.wait();
    }
}
