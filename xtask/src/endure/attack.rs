//! A hub that an enemy cuts, scribbles on and replaces, watched beside one in traffic: the daemon must not be held up.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use rustix::{
    process::{Pid, Signal, kill_process},
    time::{ClockId, clock_gettime},
};
use serde_json::Value;

use super::{
    Verdict, kernel,
    scene::{Actor, Heard, count},
    table,
};

#[derive(Args)]
pub(crate) struct Attack {
    /// For how long, such as 90s or 10m
    #[arg(long = "for", default_value = "10m", value_parser = super::time)]
    pub(super) time: Duration,
    /// Seed of the enemy's acts
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
    /// Do not judge by how late an event is shown: others use the machine
    #[arg(long)]
    pub(super) not_alone: bool,
}

/// No event may take longer than this from the instant it happened to its line.
const LONGEST_DELAY: Duration = Duration::from_millis(100);
/// The daemon may grow by this, KiB, from the first quarter of the time to its end.
const MOST_GROWTH: u64 = 8 << 10;
/// And have so many more fds open: a look may be in progress.
const MORE_FDS: usize = 12;
/// How often its memory is looked at.
const LOOKS: Duration = Duration::from_secs(1);

/// What was seen of the watch while the enemy worked.
#[derive(Default)]
struct Seen {
    delays: Vec<Duration>,
    memory: Vec<u64>,
    fds: Vec<usize>,
    /// Findings on the healthy hub.
    wrong: Vec<String>,
    /// Findings on the attacked one.
    findings: u64,
}

impl Attack {
    pub(super) fn run(&self, programs: &Path) -> Result<()> {
        let hub = PathBuf::from(format!("/dev/shm/endure-{}.shm", std::process::id()));
        let _hub = Removed(hub.clone());
        let path = hub.to_str().context("the hub's path is no UTF-8")?;
        let (victims, stopped) =
            Actor::host(programs, &["--plugins", "3", "--gap", "1ms", "--hub", path])?;
        for pid in &stopped {
            signal(*pid, Signal::STOP)?;
        }
        let (host, _) = Actor::host(programs, &["--plugins", "2", "--gap", "5ms"])?;
        let mut tracer = Actor::tracer(programs, &[victims.pid(), host.pid()], &["--events"])?;
        tracer.wait(|line| line["type"] == "header")?;
        let time = format!("--for={}s", self.time.as_secs());
        let seed = format!("--seed={}", self.seed);
        let enemy = Actor::start(
            programs,
            "ddc-sim",
            &["attack", "--hub", path, &time, &seed],
        )?;
        let mut seen = Seen::default();
        let result = seen.follow(&tracer, path, self.time);
        let attacked = enemy.last_line();
        let ended = tracer.finish();
        for pid in &stopped {
            // Killed where it stands: what it maps is not what it was.
            let _gone = signal(*pid, Signal::KILL);
        }
        result?;
        let done = host.finish()?.0;
        self.judge(&seen, &attacked?, ended?, &done)
    }

    fn judge(
        &self,
        seen: &Seen,
        attacked: &Value,
        (summary, status): (Value, std::process::ExitStatus),
        done: &Value,
    ) -> Result<()> {
        table();
        let mut verdict = Verdict::default();
        Verdict::tell(
            "the enemy",
            format_args!(
                "{} acts in {} s, seed {}",
                attacked["acts"],
                self.time.as_secs(),
                self.seed
            ),
        );
        verdict.expect(
            status.code().is_some() && summary["type"] == "summary",
            "the end of the watch",
            format_args!(
                "{status}, {} events, {} lost, {} lines of findings on the attacked hub",
                summary["events"], summary["lost"], seen.findings
            ),
        );
        let mut delays = seen.delays.clone();
        delays.sort_unstable();
        let at = |permille: usize| {
            let place = delays.len() * permille / 1000;
            delays
                .get(place.min(delays.len().saturating_sub(1)))
                .map_or(0.0, |delay| delay.as_secs_f64() * 1e3)
        };
        verdict.expect(
            delays
                .last()
                .is_some_and(|longest| self.not_alone || *longest <= LONGEST_DELAY),
            "from an event on the healthy hub to its line",
            format_args!(
                "median {:.1} ms, 99.9th percentile {:.1} ms, longest {:.1} ms, of {}",
                at(500),
                at(999),
                at(1000),
                delays.len()
            ),
        );
        verdict.expect(
            seen.wrong.is_empty(),
            "findings on the healthy hub",
            format_args!("{} {}", seen.wrong.len(), seen.wrong.join(" ")),
        );
        ensure!(!seen.memory.is_empty(), "too short: at least three seconds");
        let quarter = seen.memory.len() / 4;
        let most = |part: &[u64]| part.iter().copied().max().unwrap_or(0);
        let (early, late) = (most(&seen.memory[..=quarter]), most(&seen.memory));
        verdict.expect(
            late <= early + MOST_GROWTH,
            "resident memory of the daemon, at most",
            format_args!("{early} KiB in the first quarter, {late} KiB in all"),
        );
        let fds = |part: &[usize]| part.iter().copied().max().unwrap_or(0);
        verdict.expect(
            fds(&seen.fds) <= fds(&seen.fds[..=quarter]) + MORE_FDS,
            "fds of the daemon, at most",
            format_args!(
                "{} in the first quarter, {} in all",
                fds(&seen.fds[..=quarter]),
                fds(&seen.fds)
            ),
        );
        verdict.expect(
            count(attacked, "blocks") == 0 && count(attacked, "examinations") > 0,
            "blocks that reading made in the victim's file",
            format_args!(
                "{} (looked at {} times)",
                attacked["blocks"], attacked["examinations"]
            ),
        );
        let wrong = count(done, "mismatched") + count(done, "unexpected") + count(done, "lost");
        verdict.expect(
            wrong == 0,
            "round trips on the healthy hub",
            format_args!("{}, {wrong} of them wrong", done["round_trips"]),
        );
        verdict.end()
    }
}

impl Seen {
    /// Reads the watch's lines for a time.
    fn follow(&mut self, tracer: &Actor, attacked: &str, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        let mut looked = Instant::now();
        while Instant::now() < end {
            match tracer.next_within(LOOKS)? {
                Heard::Line(line) => self.line(&line, attacked),
                Heard::Nothing => {}
                Heard::End => bail!("shmtrace ended under the attack"),
            }
            if looked.elapsed() >= LOOKS {
                looked = Instant::now();
                self.memory
                    .extend(kernel::status_kib(tracer.pid(), "VmRSS"));
                self.fds.push(kernel::fds(tracer.pid()).len());
            }
        }
        Ok(())
    }

    fn line(&mut self, line: &Value, attacked: &str) {
        if line["type"] == "event" {
            // What waits for us in the pipe is the reader's delay, not the daemon's; it reads at once.
            if let Some(at) = line["mono_ns"].as_u64() {
                self.delays
                    .push(Duration::from_nanos(mono_ns().saturating_sub(at)));
            }
        } else if line["type"] == "finding" {
            let on_attacked = line["hub"]
                .as_str()
                .is_some_and(|hub| hub.starts_with(attacked));
            if on_attacked {
                self.findings += 1;
            } else {
                self.wrong
                    .push(format!("{}:{}", line["code"], line["state"]));
            }
        }
    }
}

/// A file that goes with this.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        for left in [self.0.with_extension("away"), self.0.clone()] {
            // Gone already is what is wanted.
            let _ = std::fs::remove_file(left);
        }
    }
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid.cast_signed()).context("0 is no pid")?;
    kill_process(pid, signal).context("cannot signal a process")
}

/// The clock of the events.
fn mono_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}
