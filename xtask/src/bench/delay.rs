//! How long after a lane got stuck the finding comes, in a tree that is almost idle and in one at full load.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::{Bench, figures::Samples};
use crate::{
    corpus::sim::{Said, Scene, Speaker},
    workspace,
};

/// Trials for each pair of measurements.
const TRIALS: u32 = 3;
/// The longest that anything takes.
const PATIENCE: Duration = Duration::from_secs(10);
/// What the fault is called, and how often all other callers call.
const LOADS: [(&str, &str); 2] = [
    ("almost idle: a call every 20 ms", "20ms"),
    ("full load", "0s"),
];

/// The delays under one load, in milliseconds.
pub(crate) struct Delay {
    pub(crate) load: &'static str,
    pub(crate) delays: Samples,
}

/// Plants a lost wakeup again and again: the consumer takes the token and sleeps before the entry that it announced.
pub(crate) fn measure(bench: &Bench) -> Result<Vec<Delay>> {
    eprintln!("measuring delays");
    let mut rows = Vec::new();
    for (load, gap) in LOADS {
        let mut delays = Samples::default();
        for seed in 0..bench.pairs * TRIALS {
            delays.push(trial(gap, seed)?);
        }
        rows.push(Delay { load, delays });
    }
    Ok(rows)
}

fn trial(gap: &str, seed: u32) -> Result<f64> {
    let programs = workspace::built("release");
    let scene = Scene::new(&programs);
    let fault = "consumed-then-slept:peer=random,after=random,lane=host->peer";
    let seed = seed.to_string();
    let args = [
        "--plugins",
        "4",
        "--round-trips",
        "0",
        "--gap",
        gap,
        "--seed",
        &seed,
        "--start-on-line",
        "--fault",
        fault,
    ];
    let mut host = scene.host("ddc-sim", &args.map(str::to_owned))?;
    until(&scene, |said| said["event"] == "ready")?;
    let mut tracer = scene.tracer(host.pid(), &[])?;
    until(&scene, |said| said["type"] == "header")?;
    host.go()?;
    let (mut planted, mut found) = (None, None);
    while planted.is_none() || found.is_none() {
        let said = next(&scene, Instant::now() + PATIENCE)?;
        let line = said.line.context("somebody ended before the finding")?;
        let at = line["mono_ns"].as_u64();
        match said.speaker {
            Speaker::Sim if line["event"] == "fault" => planted = at,
            Speaker::Tracer if line["type"] == "finding" && line["state"] == "missed" => found = at,
            _ => {}
        }
    }
    tracer.interrupt()?;
    tracer.end()?;
    host.end()?;
    let times = planted.zip(found).context("a line without its time")?;
    Ok(times.1.saturating_sub(times.0) as f64 / 1e6)
}

fn until(scene: &Scene<'_>, wanted: impl Fn(&serde_json::Value) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = next(scene, deadline)?;
        match &said.line {
            Some(line) if wanted(line) => return Ok(()),
            Some(_) => {}
            None => bail!("{:?} ended early", said.speaker),
        }
    }
}

fn next(scene: &Scene<'_>, deadline: Instant) -> Result<Said> {
    let left = deadline.saturating_duration_since(Instant::now());
    scene.lines.recv_timeout(left).context("nothing is said")
}
