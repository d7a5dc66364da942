//! `doctor --self-test`: each fault is planted in a private hub, by real processes, and a watch must find it.

use std::{
    io::{BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{limits::Check, observe::mono_now, teardown::Tree};

/// The program that plants faults; it is installed beside this one.
const SIMULATOR: &str = "ddc-sim";
/// How long a host may take to get going, and a fault to be found. Slow machines need most of it.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long after its start the host makes the first call. The watch must be attached by then to learn the cause; on a
/// machine that is too busy for that, the next attempt waits longer.
const HEAD_STARTS: [&str; 3] = ["1s", "4s", "12s"];
/// How many hosts run at once.
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
    let (results, found) = mpsc::channel();
    let next = std::sync::atomic::AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    // Relaxed: the number is all that is shared; the channel orders the results.
                    let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(planted) = FAULTS.get(number) else {
                        break;
                    };
                    let outcome = plant_and_find(&simulator, &shmtrace, planted);
                    if results.send((number, check(planted, outcome))).is_err() {
                        break;
                    }
                }
            });
        }
    });
    drop(results);
    let mut checks: Vec<(usize, Check)> = found.into_iter().collect();
    checks.sort_by_key(|(number, _)| *number);
    checks.into_iter().map(|(_, check)| check).collect()
}

fn check(planted: &Planted, outcome: Result<Duration, String>) -> Check {
    match outcome {
        Ok(after) => {
            let after = Duration::from_millis(after.as_millis() as u64);
            Check::yes(
                planted.name,
                format!("{} after it was planted", humantime::format_duration(after)),
            )
        }
        Err(why) => Check::no(
            planted.name,
            why,
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

/// How long after it was planted the fault was found.
fn plant_and_find(
    simulator: &Path,
    shmtrace: &Path,
    planted: &Planted,
) -> Result<Duration, String> {
    let mut outcome = Err("no attempt was made".to_owned());
    for head_start in HEAD_STARTS {
        let attempt = attempt(simulator, shmtrace, planted, head_start)?;
        outcome = attempt.outcome;
        if outcome.is_ok() || attempt.in_time {
            break;
        }
    }
    outcome
}

/// One host with one fault.
struct Attempt {
    /// The watch was attached before the fault.
    in_time: bool,
    outcome: Result<Duration, String>,
}

fn attempt(
    simulator: &Path,
    shmtrace: &Path,
    planted: &Planted,
    head_start: &str,
) -> Result<Attempt, String> {
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
    let attached = mono_now().0;
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
    let outcome = match found {
        Some(finding) if is_right(&finding) => {
            let at = finding["mono_ns"].as_u64().unwrap_or(0);
            Ok(Duration::from_nanos(at.saturating_sub(since)))
        }
        _ if others.is_empty() => Err("planted, and not found".to_owned()),
        _ => Err(format!("planted, and only {} was found", others.join(", "))),
    };
    Ok(Attempt {
        in_time: since > attached,
        outcome,
    })
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
