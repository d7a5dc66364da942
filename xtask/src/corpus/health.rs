//! Healthy traffic under every kind of mistreatment: nothing may be found.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::sim::{Scene, Speaker, Talker};

/// A way to run healthy traffic.
pub(crate) struct Regime {
    pub(crate) name: &'static str,
    program: &'static str,
    args: &'static str,
    /// How long each watch lasts; short ones attach and detach in mid-flight.
    watch: Duration,
}

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(200);

const fn regime(
    name: &'static str,
    program: &'static str,
    args: &'static str,
    watch: Duration,
) -> Regime {
    Regime {
        name,
        program,
        args,
        watch,
    }
}

pub(crate) const REGIMES: [Regime; 16] = [
    regime("one peer", "ddc-sim", "--plugins 1", LONG),
    regime("four peers", "ddc-sim", "--plugins 4", LONG),
    regime("31 peers", "ddc-sim", "--plugins 31", LONG),
    regime("like ddc", "ddc-sim", "--like-ddc", LONG),
    regime(
        "rings that fill",
        "ddc-sim",
        "--plugins 4 --ring-capacity 4 --in-flight 16",
        LONG,
    ),
    regime(
        "doorbell queues that fill",
        "ddc-sim",
        "--plugins 2 --ring-capacity 1024 --in-flight 600",
        LONG,
    ),
    regime(
        "host on one thread",
        "ddc-sim",
        "--plugins 4 --runtime current",
        LONG,
    ),
    regime(
        "plugins with worker threads",
        "ddc-sim",
        "--plugins 4 --plugin-runtime multi --in-flight 4",
        LONG,
    ),
    regime(
        "processes stopped and continued",
        "ddc-sim",
        "--plugins 4 --gap 100us --stop-storm 50ms",
        LONG,
    ),
    regime("four busy loops", "ddc-sim", "--plugins 4 --hogs 4", LONG),
    regime(
        "plugins restarted",
        "ddc-sim",
        "--plugins 4 --restart-every 300ms",
        LONG,
    ),
    regime(
        "fork storm beside",
        "ddc-sim",
        "--plugins 4 --fork-storm 4",
        LONG,
    ),
    regime(
        "large payloads",
        "ddc-sim",
        "--plugins 4 --payload 0..1M --in-flight 4",
        LONG,
    ),
    regime("attach and detach", "ddc-sim", "--plugins 4", SHORT),
    regime(
        "rapace 0.4",
        "rapace-peer-04",
        "--plugins 4 --in-flight 2",
        LONG,
    ),
    regime(
        "rapace 0.5",
        "rapace-peer-05",
        "--plugins 4 --in-flight 2",
        LONG,
    ),
];

/// What was seen in a regime.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health {
    pub(crate) events: u64,
    pub(crate) lost: u64,
    pub(crate) watches: u32,
    pub(crate) took: Duration,
    /// The findings, which are all wrong.
    pub(crate) findings: Vec<String>,
}

impl Regime {
    /// Watches until so many events were seen, or the time is over.
    pub(crate) fn watch(&self, programs: &Path, events: u64, limit: Duration) -> Result<Health> {
        let started = Instant::now();
        let scene = Scene::new(programs);
        let args = self
            .args
            .split(' ')
            .chain(["--round-trips", "0"])
            .map(str::to_owned)
            .collect::<Vec<_>>();
        let host = scene.host(self.program, &args)?;
        let mut health = Health::default();
        while health.events < events && started.elapsed() < limit {
            let duration = format!("{}ms", self.watch.as_millis());
            let tracer = scene.tracer(host.pid(), &["--duration".to_owned(), duration])?;
            listen(&scene, &mut health).with_context(|| format!("while watching {}", self.name))?;
            tracer.end()?;
            health.watches += 1;
        }
        Talker::end(host)?;
        health.took = started.elapsed();
        Ok(health)
    }
}

/// Takes in what a tracer says until it ends.
fn listen(scene: &Scene<'_>, health: &mut Health) -> Result<()> {
    loop {
        let said = scene
            .lines
            .recv_timeout(LONG * 3)
            .context("shmtrace does not end")?;
        match (said.speaker, said.line) {
            (Speaker::Sim, None) => anyhow::bail!("the traced program ended"),
            (Speaker::Tracer, None) => return Ok(()),
            (Speaker::Tracer, Some(line)) => take_in(&line, health),
            (Speaker::Sim, Some(_)) => {}
        }
    }
}

fn take_in(line: &Value, health: &mut Health) {
    if line["type"] == "summary" {
        health.events += line["events"].as_u64().unwrap_or_default();
        health.lost += line["lost"].as_u64().unwrap_or_default();
    } else if line["type"] == "finding" && line["state"] != "suspect" {
        health.findings.push(line.to_string());
    }
}
