//! All measurements in turns, what they come to, and whether that is what was asked for.

use std::fmt::Write as _;
use std::fs;

use anyhow::Context as _;
use serde_json::Value;
use tempfile::TempDir;

use crate::{Counter, Load, Wire, measurement};

/// Where host and plugin run.
const PLACES: [(&str, [usize; 2]); 2] = [
    ("one CPU", [0, 0]),
    ("two CPUs, kept awake by SCHED_IDLE spinners", [0, 1]),
];

/// What is measured at each place: the load, its figure, what it is called, and the most that ours may be of theirs.
const FIGURES: [(Load, &str, &str, f64); 5] = [
    (Load::Small, "p50_ns", "round trip of 8 bytes, p50", 0.7),
    (Load::Small, "p99_ns", "round trip of 8 bytes, p99", 1.0),
    (Load::Large, "p50_ns", "round trip of 1 MiB, p50", 1.0),
    (Load::Large, "p99_ns", "round trip of 1 MiB, p99", 1.0),
    (
        Load::Stream,
        "per_message_ns",
        "8 bytes one way, per message",
        1.0 / 3.0,
    ),
];

/// System calls that a round trip of 8 bytes may take, both processes together.
const MOST_CALLS: f64 = 8.0;

pub(crate) fn run(turns: usize, rounds: u64) -> anyhow::Result<String> {
    let mut text = format!(
        "# shm-transport beside rapace-transport-shm 0.4.0\n\n\
         Made by `cargo xtask bench transport` ({turns} turns, {rounds} round trips each) on {}.\n\n\
         Host and plugin are processes with a current-thread runtime each, pinned; the two transports take turns, and\n\
         each figure is the median of the turns. Times in microseconds, smaller is better. The goal is the most that\n\
         ours may be, as a part of theirs; the program compares.\n",
        machine()
    );
    let mut met = true;
    for (place, cpus) in PLACES {
        writeln!(
            text,
            "\n## {place}\n\n| | ours | rapace | ours / rapace | goal | |\n|---|---|---|---|---|---|"
        )?;
        let mut measured = None;
        for (load, figure, title, goal) in FIGURES {
            // Both figures of a load come from the same runs.
            let (_, ours, theirs) = match measured.take() {
                Some(runs @ (of, _, _)) if of == load => runs,
                _ => side_by_side(load, rounds, turns, cpus)?,
            };
            let (us, them) = (median(&ours, figure)?, median(&theirs, figure)?);
            met &= us / them <= goal;
            writeln!(
                text,
                "| {title} | {:.2} | {:.2} | {:.3} | {goal:.3} | {} |",
                us / 1e3,
                them / 1e3,
                us / them,
                verdict(us / them <= goal)
            )?;
            measured = Some((load, ours, theirs));
        }
    }
    let counted = |counter| -> anyhow::Result<_> {
        Ok((calls(Wire::Ours, counter)?, calls(Wire::Rapace, counter)?))
    };
    let ((ours, theirs), by) = match counted(Counter::Perf) {
        Ok(calls) => (calls, "perf"),
        Err(_) => (counted(Counter::Strace)?, "strace, which slows them"),
    };
    met &= ours <= MOST_CALLS;
    writeln!(
        text,
        "\n## System calls of a round trip of 8 bytes, both processes, by {by}\n\n\
         | ours | rapace | goal | |\n|---|---|---|---|\n| {ours:.1} | {theirs:.1} | {MOST_CALLS} | {} |\n\n\
         All goals together: {}.",
        verdict(ours <= MOST_CALLS),
        verdict(met)
    )?;
    Ok(text)
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "**missed**" }
}

/// Turn about, so that whatever else the machine does meets both.
fn side_by_side(
    load: Load,
    rounds: u64,
    turns: usize,
    cpus: [usize; 2],
) -> anyhow::Result<(Load, Vec<Value>, Vec<Value>)> {
    let rounds = match load {
        Load::Small => rounds,
        Load::Large => rounds / 20,
        Load::Stream => rounds * 10,
    };
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for _ in 0..turns {
        ours.push(measurement(Wire::Ours, load, rounds, cpus, None)?);
        theirs.push(measurement(Wire::Rapace, load, rounds, cpus, None)?);
    }
    Ok((load, ours, theirs))
}

/// Processors and kernel, as the machine says them.
fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let model = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown model", |(_, name)| name.trim());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kind = if fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains(" hypervisor"))
    {
        "virtual "
    } else {
        ""
    };
    format!(
        "{processors} {kind}processors ({model}), Linux {}",
        kernel.trim()
    )
}

fn median(turns: &[Value], figure: &str) -> anyhow::Result<f64> {
    let mut values: Vec<f64> = turns
        .iter()
        .map(|turn| turn[figure].as_f64().context("a figure is missing"))
        .collect::<Result<_, _>>()?;
    values.sort_by(f64::total_cmp);
    values
        .get(values.len() / 2)
        .copied()
        .context("no turns: --turns must be at least 1")
}

/// The difference of two runs of different length, so that start and end do not count.
fn calls(wire: Wire, counter: Counter) -> anyhow::Result<f64> {
    const SHORT: u64 = 500;
    const LONG: u64 = 2_500;
    let folder = TempDir::new()?;
    let count = |rounds| -> anyhow::Result<f64> {
        let file = folder.path().join("calls");
        let counter = Some((counter, file.as_path()));
        measurement(wire, Load::Small, rounds, [0, 0], counter)?;
        let text = fs::read_to_string(&file)?;
        let total = text
            .lines()
            .rev()
            .find(|line| line.contains("total") || line.contains("sys_enter"))
            .and_then(|line| line.split([',', ' ']).find(|word| !word.is_empty()))
            .context("no system calls were counted")?;
        Ok(total.parse()?)
    };
    Ok((count(LONG)? - count(SHORT)?) / (LONG - SHORT) as f64)
}
