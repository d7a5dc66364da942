//! Whether a call costs the same however many peers there are, and however many processes that have nothing to do with it.

use std::process::Stdio;

use anyhow::{Context as _, Result};

use super::{Bench, WARM_UP, figures::Samples, load::Load, tracer::Tracer};
use crate::{process, process::Guard, workspace};

/// Peers, and unrelated processes.
const SETTINGS: [(usize, usize); 4] = [(1, 0), (8, 0), (31, 0), (1, 1000)];

/// What one call costs in one setting.
pub(crate) struct Growth {
    pub(crate) peers: usize,
    pub(crate) unrelated: usize,
    pub(crate) untraced: Samples,
    pub(crate) added: Samples,
    /// The daemon's processor time for a million records, seconds.
    pub(crate) cpu: Samples,
}

/// Measures each setting in turn with and without shmtrace.
pub(crate) fn measure(bench: &Bench) -> Result<Vec<Growth>> {
    eprintln!("measuring growth");
    SETTINGS
        .into_iter()
        .map(|(peers, unrelated)| setting(bench, peers, unrelated))
        .collect()
}

fn setting(bench: &Bench, peers: usize, unrelated: usize) -> Result<Growth> {
    let programs = workspace::built("release");
    let _sleepers = (0..unrelated)
        .map(|_| sleeper())
        .collect::<Result<Vec<_>>>()?;
    let mut load = Load::doorbell(&programs, &bench.transport, "0", peers - 1)?;
    let mut growth = Growth {
        peers,
        unrelated,
        untraced: Samples::default(),
        added: Samples::default(),
        cpu: Samples::default(),
    };
    let measure = |load: &mut Load| {
        load.per_call("micro", WARM_UP)?;
        load.per_call("micro", bench.time())
    };
    let mut before = measure(&mut load)?;
    for _ in 0..bench.pairs {
        let attached = Tracer::Shmtrace.attach(&programs, &load.pids)?;
        let traced = measure(&mut load)?;
        growth.cpu.push(attached.detach()?.cpu_per_million());
        let after = measure(&mut load)?;
        let untraced = f64::midpoint(before, after);
        growth.untraced.push(untraced);
        growth.added.push(traced - untraced);
        before = after;
    }
    Ok(growth)
}

fn sleeper() -> Result<Guard> {
    let mut sleep = process::command("sleep", ["1h"]);
    let sleep = sleep.stdin(Stdio::null()).spawn();
    sleep.map(Guard).context("cannot start `sleep`")
}
