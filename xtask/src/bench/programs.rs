//! What the programs in the kernel take, by the kernel's own account: it counts their runs and times them.
//!
//! Timing costs more than some of them do, so it is a measurement of its own: of a round trip, it tells what lies within the
//! programs; what a round trip takes longer beyond that is what they do to everything else.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result};

use super::{
    Bench, WARM_UP,
    figures::Samples,
    load::{Load, Placement},
    tracer::Tracer,
};
use crate::workspace;

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";
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
    let before = fs::read_to_string(SWITCH);
    if let Err(error) = before.and_then(|_| fs::write(SWITCH, "1")) {
        absent.push(format!("time within programs: {SWITCH}: {error}"));
        return Ok(Vec::new());
    }
    let rows = [Placement::Same, Placement::Spin]
        .into_iter()
        .map(|placement| placed(bench, placement))
        .collect::<Result<Vec<_>>>();
    fs::write(SWITCH, "0").with_context(|| format!("cannot write {SWITCH}"))?;
    Ok(rows?.into_iter().flatten().collect())
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
            let account = Account::of(attached.pid())?;
            let (trips, took) = pair.trips(bench.time())?;
            let account = Account::of(attached.pid())?.since(&account);
            attached.detach()?;
            pair.trips_a_second(WARM_UP)?;
            let after = trip(&mut pair, bench.time())?;
            row.runs.push(account.runs as f64 / trips);
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
struct Account {
    runs: u64,
    nanos: u64,
}

impl Account {
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
            runs: sum(|account| account.runs),
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
                runs: field("run_cnt")?,
                nanos: field("run_time_ns")?,
            },
        ))
    }

    fn since(self, before: &Self) -> Self {
        Self {
            runs: self.runs.saturating_sub(before.runs),
            nanos: self.nanos.saturating_sub(before.nanos),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Account;

    #[test]
    fn programs_are_told_from_links() {
        let program = "pos:\t0\nprog_type:\t26\nprog_id:\t7\nrun_time_ns:\t900\nrun_cnt:\t3\n";
        let account = Account {
            runs: 3,
            nanos: 900,
        };
        assert_eq!(Account::parse(program), Some((7, account)));
        assert_eq!(Account::parse("link_type:\ttracing\nprog_id:\t7\n"), None);
    }
}
