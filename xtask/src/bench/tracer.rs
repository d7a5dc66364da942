//! The tracers that are compared, each with the options that serve it best.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    apt,
    process::{self, Guard},
};

/// What watches a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tracer {
    Shmtrace,
    /// shmtrace without what slows down the system calls of everybody on kernels that refuse `fexit` programs.
    Sparing,
    /// shmtrace, with its process stopped while a load is measured: what is left is what its programs cost.
    Stopped,
    /// Programs that do next to nothing, by the name that `shmtrace/examples/floor.rs` has for them.
    Floor(&'static str),
    Strace,
    PerfTrace,
    BpftraceLines,
    BpftraceCounts,
}

/// What is compared with shmtrace by default.
pub(crate) const OTHERS: [Tracer; 4] = [
    Tracer::BpftraceCounts,
    Tracer::BpftraceLines,
    Tracer::PerfTrace,
    Tracer::Strace,
];

/// What any tracer at the places of the probes costs, and what others would be.
pub(crate) const FLOORS: [Tracer; 7] = [
    Tracer::Floor("sockets-nothing"),
    Tracer::Floor("sockets-lookup"),
    Tracer::Floor("sockets-record"),
    Tracer::Floor("sockets-ring"),
    Tracer::Floor("calls-typed"),
    Tracer::Floor("calls-raw"),
    Tracer::Floor("calls-classic"),
];

/// The calls that the old command listed.
const CALLS: [&str; 5] = ["sendto", "recvfrom", "epoll_wait", "epoll_pwait", "futex"];

/// A tracer that does not end is interrupted once more after this.
const AGAIN: Duration = Duration::from_secs(3);

/// What tracing itself took; of shmtrace only.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cost {
    pub(crate) attach: Duration,
    pub(crate) detach: Duration,
    /// Processor time since it was attached.
    pub(crate) cpu: Duration,
    pub(crate) resident_kib: u64,
    pub(crate) events: u64,
    pub(crate) lost: u64,
    pub(crate) findings: u64,
    pub(crate) calls: Calls,
}

impl Cost {
    /// Processor time for a million records, seconds.
    pub(crate) fn cpu_per_million(&self) -> f64 {
        self.cpu.as_secs_f64() / (self.events as f64 / 1e6)
    }
}

/// What became of the calls of interest, by shmtrace's own account.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Calls {
    pub(crate) seen: u64,
    pub(crate) recorded: u64,
    pub(crate) lost: u64,
    pub(crate) filtered: u64,
}

/// A tracer that is attached.
pub(crate) struct Attached {
    tracer: Tracer,
    child: Guard,
    /// The lines of shmtrace after the header.
    lines: Option<thread::JoinHandle<Vec<String>>>,
    attach: Duration,
    cpu_at_start: Duration,
}

impl Tracer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Shmtrace => "**shmtrace, judging live**",
            Self::Sparing => "shmtrace `--without-failed-sends`",
            Self::Stopped => "shmtrace, its reader stopped meanwhile",
            Self::Floor("sockets-nothing") => "floor: nothing, at the probes' tracepoints",
            Self::Floor("sockets-lookup") => "floor: pid looked up in an array, there",
            Self::Floor("sockets-record") => "floor: the same and an empty record, there",
            Self::Floor("sockets-ring") => "floor: the same and the indexes of a ring, there",
            Self::Floor("calls-typed") => "floor: pid looked up in a hash, btf `sys_exit`",
            Self::Floor("calls-raw") => "floor: the same, raw `sys_exit`",
            Self::Floor("calls-classic") => "floor: the same, five classic `sys_exit_*`",
            Self::Floor(other) => other,
            Self::Strace => "strace",
            Self::PerfTrace => "perf trace",
            Self::BpftraceLines => "bpftrace, a line per event",
            Self::BpftraceCounts => "bpftrace, counting only",
        }
    }

    /// Says itself that it traces, and is gone at once: so it can be measured more often.
    pub(crate) fn is_light(self) -> bool {
        self.is_shmtrace() || matches!(self, Self::Floor(_))
    }

    fn is_shmtrace(self) -> bool {
        matches!(self, Self::Shmtrace | Self::Sparing | Self::Stopped)
    }

    /// Installs the Debian package that has it, unless it is there.
    pub(crate) fn install(self) -> Result<()> {
        let (program, package) = match self {
            Self::Shmtrace | Self::Sparing | Self::Stopped | Self::Floor(_) => return Ok(()),
            Self::Strace => ("strace", "strace"),
            Self::PerfTrace => ("perf", "linux-perf"),
            Self::BpftraceLines | Self::BpftraceCounts => ("bpftrace", "bpftrace"),
        };
        if process::succeeds(&mut process::command(program, ["--version"])) {
            return Ok(());
        }
        apt::install(&[package])
    }

    fn command(self, programs: &Path, pids: &[u32]) -> Command {
        let words: Vec<String> = pids.iter().map(u32::to_string).collect();
        let list = words.join(",");
        match self {
            Self::Shmtrace | Self::Sparing | Self::Stopped => {
                let mut command = Command::new(programs.join("shmtrace"));
                command.args(["--pid-tree", &list, "--format", "json"]);
                if self == Self::Sparing {
                    command.arg("--without-failed-sends");
                }
                command
            }
            Self::Floor(kind) => {
                let mut command = Command::new(programs.join("examples/floor"));
                command.arg(kind).args(&words);
                command
            }
            Self::Strace => {
                let calls = format!("trace={}", CALLS.join(","));
                let mut command = process::command(
                    "strace",
                    ["-f", "-qq", "-tt", "-T", "-e", &calls, "-o", "/dev/null"],
                );
                command.args(words.iter().flat_map(|pid| ["-p", pid]));
                command
            }
            Self::PerfTrace => process::command(
                "perf",
                [
                    "trace",
                    "--event",
                    &CALLS.join(","),
                    "--pid",
                    &list,
                    "--output",
                    "/dev/null",
                ],
            ),
            Self::BpftraceLines => {
                let action = "printf(\"%lu %d %d %s %d\\n\", nsecs, pid, tid, probe, args->ret)";
                process::command(
                    "bpftrace",
                    ["-q", "-o", "/dev/null", "-e", &script(pids, action)],
                )
            }
            Self::BpftraceCounts => process::command(
                "bpftrace",
                [
                    "-q",
                    "-o",
                    "/dev/null",
                    "-e",
                    &script(pids, "@[pid, probe] = count()"),
                ],
            ),
        }
    }

    /// Starts it and waits until it traces.
    pub(crate) fn attach(self, programs: &Path, pids: &[u32]) -> Result<Attached> {
        self.attach_with(programs, pids, &[])
    }

    /// The same with more options.
    pub(crate) fn attach_with(
        self,
        programs: &Path,
        pids: &[u32],
        options: &[&str],
    ) -> Result<Attached> {
        let mut command = self.command(programs, pids);
        command.args(options);
        let pipe = if self.is_light() {
            Stdio::piped()
        } else {
            Stdio::null()
        };
        command
            .stdin(Stdio::null())
            .stdout(pipe)
            .stderr(Stdio::null());
        let started = Instant::now();
        let mut child = Guard(
            command
                .spawn()
                .with_context(|| format!("cannot start {}", self.name()))?,
        );
        let mut attach = started.elapsed();
        let mut lines = None;
        if self.is_light() {
            let mut output = BufReader::new(child.0.stdout.take().context("it has no stdout")?);
            let mut header = String::new();
            output
                .read_line(&mut header)
                .with_context(|| format!("cannot read from {}", self.name()))?;
            attach = started.elapsed();
            if header.is_empty() {
                bail!("{} ended at once: {}", self.name(), child.0.wait()?);
            }
            lines = Some(thread::spawn(move || {
                output.lines().map_while(Result::ok).collect()
            }));
            let settles = if self.is_shmtrace() { 500 } else { 50 };
            thread::sleep(Duration::from_millis(settles));
        } else {
            // None of them says when it traces; bpftrace compiles first.
            thread::sleep(Duration::from_millis(2500));
        }
        if let Some(status) = child.0.try_wait()? {
            bail!("{} ended at once ({status})", self.name());
        }
        let cpu_at_start = cpu_time(child.0.id())?;
        Ok(Attached {
            tracer: self,
            child,
            lines,
            attach,
            cpu_at_start,
        })
    }
}

impl Attached {
    /// The tracer's process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Runs something while its process is stopped.
    pub(crate) fn stopped<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<T> {
        process::signal(&self.child.0, Signal::STOP)?;
        let done = run();
        process::signal(&self.child.0, Signal::CONT)?;
        done
    }

    /// Ends it as ^C would, and tells what it took.
    pub(crate) fn detach(mut self) -> Result<Cost> {
        let pid = self.child.0.id();
        let cpu = cpu_time(pid)?.saturating_sub(self.cpu_at_start);
        let resident_kib = resident_kib(pid)?;
        let started = Instant::now();
        process::interrupt(&self.child.0)?;
        let mut again = AGAIN;
        while self.child.0.try_wait()?.is_none() {
            if started.elapsed() > Duration::from_secs(20) {
                bail!("{} does not end when it is interrupted", self.tracer.name());
            }
            // One that is still being set up may miss it.
            if started.elapsed() > again {
                again += AGAIN;
                process::interrupt(&self.child.0)?;
            }
            thread::sleep(Duration::from_millis(1));
        }
        let detach = started.elapsed();
        let mut cost = Cost {
            attach: self.attach,
            detach,
            cpu,
            resident_kib,
            ..Cost::default()
        };
        if let Some(lines) = self.lines
            && self.tracer.is_shmtrace()
        {
            let lines = lines.join().unwrap_or_default();
            let summary = lines
                .iter()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .rfind(|line| line["type"] == "summary");
            let summary = summary.context("shmtrace ended without a summary")?;
            cost.events = summary["events"]
                .as_u64()
                .context("a summary without `events`")?;
            cost.lost = summary["lost"]
                .as_u64()
                .context("a summary without `lost`")?;
            let findings = summary["findings"]
                .as_object()
                .context("a summary without `findings`")?;
            cost.findings = findings.values().filter_map(Value::as_u64).sum();
            let calls = &summary["calls"];
            let of = |name: &str| calls[name].as_u64().context("a summary without `calls`");
            let filtered = calls["filtered"]
                .as_object()
                .context("a summary without `filtered`")?;
            cost.calls = Calls {
                seen: of("seen")?,
                recorded: of("recorded")?,
                lost: of("lost")?,
                filtered: filtered.values().filter_map(Value::as_u64).sum(),
            };
        }
        Ok(cost)
    }
}

fn script(pids: &[u32], action: &str) -> String {
    let filter: Vec<String> = pids.iter().map(|pid| format!("pid == {pid}")).collect();
    let filter = filter.join(" || ");
    CALLS
        .map(|call| format!("tracepoint:syscalls:sys_exit_{call} /{filter}/ {{ {action}; }}"))
        .join(" ")
}

/// Time on a processor of all threads that a process has.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let folder = format!("/proc/{pid}/task");
    let mut total = Duration::ZERO;
    for task in fs::read_dir(&folder).with_context(|| format!("cannot list {folder}"))? {
        let file = task?.path().join("schedstat");
        // A thread that has just ended is not counted.
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        let nanos = text.split(' ').next().and_then(|word| word.parse().ok());
        total += Duration::from_nanos(
            nanos.with_context(|| format!("{} is not understood", file.display()))?,
        );
    }
    Ok(total)
}

/// The memory it has now.
pub(crate) fn resident_kib(pid: u32) -> Result<u64> {
    let file = format!("/proc/{pid}/status");
    let status = File::open(&file).with_context(|| format!("cannot open {file}"))?;
    let line = BufReader::new(status)
        .lines()
        .map_while(Result::ok)
        .find(|line| line.starts_with("VmRSS:"));
    let word = line
        .as_deref()
        .and_then(|line| line.split_whitespace().nth(1))
        .and_then(|word| word.parse().ok());
    word.with_context(|| format!("{file} has no VmRSS"))
}
