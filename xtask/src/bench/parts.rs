//! Where the daemon's processor time goes at full load: samples of its code, by the source file that it comes from.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{Bench, WARM_UP, load::Placement, tracer::Tracer};
use crate::{
    apt,
    process::{self, Guard},
    workspace,
};

/// How long it is sampled.
const TIME: Duration = Duration::from_secs(5);
/// Samples of each processor's time a second.
const FREQUENCY: &str = "2000";
/// What lies above is the kernel's.
const KERNEL: u64 = 1 << 63;

/// What a source file has to do with a record. The first that fits counts; paths are those of the workspace.
const PARTS: [(&str, &str); 12] = [
    ("shmtrace/src/probes/", "reading and decoding records"),
    (
        "shmtrace/src/session/decode.rs",
        "reading and decoding records",
    ),
    (
        "shmtrace/src/session/tree.rs",
        "reading and decoding records",
    ),
    ("shmtrace-engine/src/pending.rs", "putting them in order"),
    ("shmtrace-engine/", "judging"),
    ("shmtrace/src/session/mod.rs", "the loop"),
    ("shmtrace/src/session/", "handing over"),
    ("shmtrace/src/canary/", "handing over"),
    ("shmtrace/src/hub/", "looking at rings"),
    ("shmtrace/src/discover/", "looking at rings"),
    ("shmtrace/src/observe/", "looking at rings"),
    ("shmtrace/", "everything else"),
];
/// What is in the kernel.
const IN_KERNEL: &str = "the kernel: waking, looking at `/proc`";
/// Code of no source file of the workspace: tokio, libc.
const ELSEWHERE: &str = "libraries";

/// Shares by part, the largest first.
pub(crate) type Parts = Vec<(&'static str, f64)>;

/// Samples shmtrace while a pair in SAME calls each other.
pub(super) fn measure(bench: &Bench, absent: &mut Vec<String>) -> Parts {
    eprintln!("measuring parts");
    sample(bench).unwrap_or_else(|error| {
        absent.push(format!("parts of the processor time: {error:#}"));
        Parts::new()
    })
}

fn sample(bench: &Bench) -> Result<Parts> {
    Tracer::PerfTrace.install()?;
    apt::install(&["binutils"])?;
    let programs = workspace::built("release");
    let mut pair = bench.pair(Placement::Same)?;
    let attached = Tracer::Shmtrace.attach(&programs, &pair.pids)?;
    pair.trips_a_second(WARM_UP)?;
    let pid = attached.pid();
    let base = base(pid).context("cannot tell where shmtrace is in memory")?;
    let samples = programs.join("bench.perf");
    let mut perf = process::command(
        "perf",
        ["record", "--quiet", "--event", "cpu-clock", "--freq"],
    );
    perf.args([FREQUENCY, "--pid", &pid.to_string(), "--output"])
        .arg(&samples);
    perf.stdin(Stdio::null()).stdout(Stdio::null());
    let mut perf = Guard(perf.spawn().context("cannot start perf")?);
    pair.trips_a_second(TIME)?;
    process::interrupt(&perf.0)?;
    perf.0.wait().context("cannot wait for perf")?;
    attached.detach()?;
    let mut script = process::command("perf", ["script", "--fields", "ip", "--input"]);
    let text = process::output(script.arg(&samples));
    fs::remove_file(&samples).context("perf left no samples")?;
    let addresses: Vec<u64> = text
        .context("perf script fails")?
        .split_whitespace()
        .filter_map(|word| u64::from_str_radix(word, 16).ok())
        .collect();
    shares(&addresses, base, &programs.join("shmtrace"))
}

/// Where the first byte of the program is.
fn base(pid: u32) -> Option<u64> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let first = maps
        .lines()
        .find(|line| line.ends_with(&*program.to_string_lossy()))?;
    u64::from_str_radix(first.split('-').next()?, 16).ok()
}

fn shares(addresses: &[u64], base: u64, program: &Path) -> Result<Parts> {
    let own: Vec<u64> = addresses
        .iter()
        .filter(|address| **address < KERNEL)
        .map(|address| address.wrapping_sub(base))
        .collect();
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    *counts.entry(IN_KERNEL).or_default() += (addresses.len() - own.len()) as u64;
    for frames in sources(&own, program)? {
        *counts.entry(part(&frames)).or_default() += 1;
    }
    let total = addresses.len().max(1) as f64;
    let mut parts: Parts = counts
        .into_iter()
        .map(|(part, count)| (part, count as f64 / total))
        .collect();
    parts.sort_by(|one, other| other.1.total_cmp(&one.1));
    Ok(parts)
}

/// The source files of each address, that of the innermost inlined function first.
fn sources(addresses: &[u64], program: &Path) -> Result<Vec<Vec<String>>> {
    let mut resolver = Command::new("addr2line")
        .args(["--inlines", "--addresses", "--exe"])
        .arg(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start addr2line, of binutils")?;
    let mut input = resolver.stdin.take().context("it has no stdin")?;
    let addresses = addresses.to_vec();
    let number = addresses.len();
    let writer = std::thread::spawn(move || {
        let mut lines = addresses.iter();
        lines.try_for_each(|address| writeln!(input, "{address:x}"))
    });
    let output = resolver
        .wait_with_output()
        .context("cannot read from addr2line")?;
    let written = writer.join().unwrap_or(Ok(()));
    written.context("cannot write to addr2line")?;
    ensure!(output.status.success(), "addr2line: {}", output.status);
    let mut frames: Vec<Vec<String>> = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if line.starts_with("0x") {
            frames.push(Vec::new());
        } else if let Some(last) = frames.last_mut() {
            last.push(line.to_owned());
        }
    }
    ensure!(frames.len() == number, "addr2line left addresses out");
    Ok(frames)
}

/// What the innermost function of the workspace is for.
fn part(frames: &[String]) -> &'static str {
    let root = workspace::root().display().to_string();
    let own = frames.iter().find_map(|frame| {
        let frame = frame
            .strip_prefix(&root)
            .unwrap_or(frame)
            .trim_start_matches(['.', '/']);
        PARTS.iter().find(|(path, _)| frame.starts_with(path))
    });
    own.map_or(ELSEWHERE, |(_, part)| part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_belongs_to_the_innermost_source_of_the_workspace() {
        let frames = |lines: &[&str]| {
            lines
                .iter()
                .map(|&line| line.to_owned())
                .collect::<Vec<_>>()
        };
        let sorted = frames(&[
            "/rustc/5980/library/alloc/src/collections/vec_deque/mod.rs:1",
            "./shmtrace-engine/src/pending.rs:40",
            "./shmtrace-engine/src/engine/mod.rs:120",
        ]);
        assert_eq!(part(&sorted), "putting them in order");
        let root = workspace::root().display().to_string();
        let judged = frames(&[&format!("{root}/shmtrace-engine/src/history.rs:7")]);
        assert_eq!(part(&judged), "judging");
        assert_eq!(
            part(&frames(&["/registry/tokio-1/src/runtime.rs:1"])),
            ELSEWHERE
        );
        assert_eq!(part(&[]), ELSEWHERE);
    }
}
