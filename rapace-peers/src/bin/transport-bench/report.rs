//! All measurements in turns, and what they come to.

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

pub(crate) fn run(turns: usize, rounds: u64) -> anyhow::Result<String> {
    let mut text = String::from(
        "# shm-transport beside rapace-transport-shm 0.4.0\n\n\
         Made by `transport-bench`: host and plugin are processes with a current-thread runtime each, pinned; the two\n\
         transports take turns, and each figure is the median of the turns. Times in microseconds, smaller is better.\n",
    );
    for (place, cpus) in PLACES {
        writeln!(
            text,
            "\n## {place}\n\n| | ours | rapace | ours / rapace |\n|---|---|---|---|"
        )?;
        for (load, rounds, figures) in [
            (Load::Small, rounds, &["p50_ns", "p99_ns"][..]),
            (Load::Large, rounds / 20, &["p50_ns", "p99_ns"]),
            (Load::Stream, rounds * 10, &["per_message_ns"]),
        ] {
            let mut ours = Vec::new();
            let mut theirs = Vec::new();
            for _ in 0..turns {
                ours.push(measurement(Wire::Ours, load, rounds, cpus, None)?);
                theirs.push(measurement(Wire::Rapace, load, rounds, cpus, None)?);
            }
            for figure in figures {
                let (ours, theirs) = (median(&ours, figure)?, median(&theirs, figure)?);
                writeln!(
                    text,
                    "| {} | {:.2} | {:.2} | {:.2} |",
                    title(load, figure),
                    ours / 1e3,
                    theirs / 1e3,
                    ours / theirs
                )?;
            }
        }
    }
    let counted = |counter| -> anyhow::Result<_> {
        Ok((calls(Wire::Ours, counter)?, calls(Wire::Rapace, counter)?))
    };
    let ((ours, theirs), by) = match counted(Counter::Perf) {
        Ok(calls) => (calls, "perf"),
        Err(_) => (counted(Counter::Strace)?, "strace, which slows them"),
    };
    writeln!(
        text,
        "\n## System calls of a round trip of 8 bytes, both processes, by {by}\n\n\
         | ours | rapace |\n|---|---|\n| {ours:.1} | {theirs:.1} |"
    )?;
    Ok(text)
}

fn title(load: Load, figure: &str) -> &'static str {
    match (load, figure) {
        (Load::Small, "p50_ns") => "round trip of 8 bytes, p50",
        (Load::Small, _) => "round trip of 8 bytes, p99",
        (Load::Large, "p50_ns") => "round trip of 1 MiB, p50",
        (Load::Large, _) => "round trip of 1 MiB, p99",
        (Load::Stream, _) => "8 bytes one way, per message",
    }
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
