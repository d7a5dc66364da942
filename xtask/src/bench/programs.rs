//! What the programs in the kernel take, by the kernel's own account: it counts their runs and times them.
//!
//! Timing costs more than some of them do, so it is a measurement of its own: of a round trip, it tells what lies within the
//! programs; what a round trip takes longer beyond that is what they do to everything else.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

use super::{
    Bench, WARM_UP,
    figures::Samples,
    load::{Load, Placement},
    tracer::Tracer,
};
use crate::{process, workspace};

/// Whose programs are timed.
const TIMED: [Tracer; 4] = [
    Tracer::Shmtrace,
    Tracer::Floor("sockets-nothing"),
    Tracer::Floor("sockets-record"),
    Tracer::Floor("sockets-ring"),
];

/// What a round trip has to do with a tracer's programs.
pub(crate) struct Timed {
    pub(crate) tracer: Tracer,
    pub(crate) placement: Placement,
    /// Runs of its programs in a round trip.
    pub(crate) runs: Samples,
    /// Time in them, ns.
    pub(crate) inside: Samples,
    /// How much longer it took than without the tracer, ns.
    pub(crate) longer: Samples,
}

/// Times the programs of each tracer in turn.
pub(super) fn measure(bench: &Bench, absent: &mut Vec<String>) -> Result<Vec<Timed>> {
    eprintln!("measuring programs");
    let _timing = match enable_stats() {
        Ok(timing) => timing,
        Err(error) => {
            absent.push(format!("time within programs: {error}"));
            return Ok(Vec::new());
        }
    };
    let mut rows = placed(bench, Placement::Same)?;
    rows.extend(placed(bench, Placement::Spin)?);
    Ok(rows)
}

/// Has the kernel time all programs for as long as what it returns is open (`BPF_ENABLE_STATS`, from 5.8).
fn enable_stats() -> io::Result<OwnedFd> {
    const BPF_ENABLE_STATS: libc::c_int = 32;
    /// Its part of `union bpf_attr`: `BPF_STATS_RUN_TIME`.
    const RUN_TIME: u32 = 0;
    let mut kind = RUN_TIME;
    // SAFETY: the command reads that word alone.
    let fd = unsafe { process::bpf(BPF_ENABLE_STATS, &mut kind) }?;
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn placed(bench: &Bench, placement: Placement) -> Result<Vec<Timed>> {
    let programs = workspace::built("release");
    let mut pair = bench.pair(placement)?;
    let mut rows: Vec<Timed> = TIMED.map(|tracer| Timed::new(tracer, placement)).into();
    let trip = |pair: &mut Load, time| -> Result<f64> { Ok(1e9 / pair.trips_a_second(time)?) };
    pair.trips_a_second(WARM_UP)?;
    let mut before = trip(&mut pair, bench.time())?;
    for _ in 0..bench.pairs {
        for row in &mut rows {
            let attached = row.tracer.attach(&programs, &pair.pids)?;
            pair.trips_a_second(WARM_UP)?;
            let account = Runs::of(attached.pid())?;
            let (trips, took) = pair.trips(bench.time())?;
            let account = Runs::of(attached.pid())?.since(&account);
            attached.detach()?;
            pair.trips_a_second(WARM_UP)?;
            let after = trip(&mut pair, bench.time())?;
            row.runs.push(account.number as f64 / trips);
            row.inside.push(account.nanos as f64 / trips);
            let untraced = f64::midpoint(before, after);
            row.longer.push(took.as_nanos() as f64 / trips - untraced);
            before = after;
        }
    }
    Ok(rows)
}

impl Timed {
    fn new(tracer: Tracer, placement: Placement) -> Self {
        Self {
            tracer,
            placement,
            runs: Samples::default(),
            inside: Samples::default(),
            longer: Samples::default(),
        }
    }
}

/// What the kernel counted of a process's programs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Runs {
    number: u64,
    nanos: u64,
}

impl Runs {
    fn of(pid: u32) -> Result<Self> {
        let folder = format!("/proc/{pid}/fdinfo");
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot list {folder}"))?;
        // A program may have several fds.
        let programs: BTreeMap<u64, Self> = entries
            .flatten()
            .filter_map(|entry| Self::parse(&fs::read_to_string(entry.path()).ok()?))
            .collect();
        let sum = |of: fn(&Self) -> u64| programs.values().map(of).sum();
        Ok(Self {
            number: sum(|account| account.number),
            nanos: sum(|account| account.nanos),
        })
    }

    /// `fdinfo` of a program: its id, and what was counted.
    fn parse(fdinfo: &str) -> Option<(u64, Self)> {
        let field = |name: &str| {
            let mut lines = fdinfo.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            value.trim().parse().ok()
        };
        // A link has a program's id as well.
        Some((
            field("prog_id")?,
            Self {
                number: field("run_cnt")?,
                nanos: field("run_time_ns")?,
            },
        ))
    }

    fn since(self, before: &Self) -> Self {
        Self {
            number: self.number.saturating_sub(before.number),
            nanos: self.nanos.saturating_sub(before.nanos),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Runs;

    #[test]
    fn programs_are_told_from_links() {
        let program = "pos:\t0\nprog_type:\t26\nprog_id:\t7\nrun_time_ns:\t900\nrun_cnt:\t3\n";
        let account = Runs {
            number: 3,
            nanos: 900,
        };
        assert_eq!(Runs::parse(program), Some((7, account)));
        assert_eq!(Runs::parse("link_type:\ttracing\nprog_id:\t7\n"), None);
    }
}
