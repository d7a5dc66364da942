//! Healthy traffic under every kind of mistreatment: nothing may be found.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Corpus, folder,
    machine::{Source, Watch},
    regimes::{REGIMES, Regime},
    sim::{Scene, Speaker, Talker},
};
use crate::workspace;

/// How long a tracer may take to start and to end, beside its watch.
const PATIENCE: Duration = Duration::from_secs(60);
/// So many times the fastest regimes are run again to make up for the slow ones.
const EXTRA_ROUNDS: u32 = 6;
/// How many of them.
const FASTEST: usize = 6;

/// What a campaign came to.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Healthy {
    pub(crate) regimes: Vec<Health>,
}

/// What was seen in a regime.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Health {
    pub(crate) source: Source,
    pub(crate) name: String,
    pub(crate) args: String,
    pub(crate) events: u64,
    pub(crate) lost: u64,
    pub(crate) watches: u32,
    pub(crate) seconds: f64,
    /// The findings, which are all wrong.
    pub(crate) findings: Vec<String>,
    /// What could not be judged, which is right only where records were lost.
    pub(crate) inconclusive: Vec<String>,
    /// It could not be run to its end.
    pub(crate) failed: Option<String>,
}

impl Healthy {
    pub(crate) fn wrong(&self) -> usize {
        let wrong = |health: &Health| {
            let unjudged = if health.lost > 0 {
                0
            } else {
                health.inconclusive.len()
            };
            health.findings.len() + unjudged + usize::from(health.failed.is_some())
        };
        self.regimes.iter().map(wrong).sum()
    }

    /// Takes over what another run has for regimes that this one left out.
    pub(crate) fn complete(&mut self, before: Self) {
        for health in before.regimes {
            if !self.regimes.iter().any(|known| known.name == health.name) {
                self.regimes.push(health);
            }
        }
        let place = |health: &Health| REGIMES.iter().position(|regime| regime.name == health.name);
        self.regimes.sort_by_key(place);
    }

    fn events(&self) -> u64 {
        self.regimes.iter().map(|health| health.events).sum()
    }
}

/// Watches every regime that was asked for, until so many events were seen.
pub(crate) fn campaign(corpus: &Corpus) -> Result<Healthy> {
    let programs = workspace::built("release");
    let watch = Watch::start();
    let wanted = || REGIMES.iter().filter(|regime| corpus.wants(regime.name));
    let share = corpus.events / u64::try_from(wanted().count().max(1))?;
    let limit = Duration::from_secs(corpus.limit);
    let mut all = Healthy::default();
    thread::scope(|scope| {
        let idle: Vec<_> = wanted()
            .filter(|regime| regime.idle)
            .map(|regime| scope.spawn(|| watched(regime, &programs, share, limit)))
            .collect();
        for regime in wanted().filter(|regime| !regime.idle) {
            all.regimes.push(watched(regime, &programs, share, limit));
        }
        for round in 0..EXTRA_ROUNDS {
            let missing = corpus.events.saturating_sub(all.events());
            if missing == 0 {
                break;
            }
            eprintln!("round {round}: {missing} events are missing");
            make_up(&mut all, &programs, missing, limit);
        }
        for idle in idle {
            match idle.join() {
                Ok(health) => all.regimes.push(health),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    let source = Source {
        command: corpus.shown("health"),
        load: watch.load(),
    };
    for health in &mut all.regimes {
        health.source = source.clone();
    }
    Ok(all)
}

/// Runs the fastest regimes again, for the events that are missing.
fn make_up(all: &mut Healthy, programs: &Path, missing: u64, limit: Duration) {
    let mut fastest: Vec<usize> = (0..all.regimes.len()).collect();
    let rate = |health: &Health| health.events as f64 / health.seconds.max(1.0);
    fastest.sort_by(|a, b| rate(&all.regimes[*b]).total_cmp(&rate(&all.regimes[*a])));
    fastest.truncate(FASTEST);
    let share = missing / fastest.len().max(1) as u64 + 1;
    for index in fastest {
        let again = &mut all.regimes[index];
        let Some(regime) = REGIMES.iter().find(|regime| regime.name == again.name) else {
            continue;
        };
        let more = watched(regime, programs, share, limit);
        again.events += more.events;
        again.lost += more.lost;
        again.watches += more.watches;
        again.seconds += more.seconds;
        again.findings.extend(more.findings);
        again.inconclusive.extend(more.inconclusive);
        again.failed = again.failed.take().or(more.failed);
    }
}

/// Watches a regime and says how it went.
fn watched(regime: &Regime, programs: &Path, events: u64, limit: Duration) -> Health {
    let mut health = Health {
        name: regime.name.to_owned(),
        args: format!("{} host {}", regime.program, regime.args),
        ..Health::default()
    };
    let started = Instant::now();
    if let Err(error) = watch(regime, programs, events, limit, &mut health) {
        health.failed = Some(format!("{error:#}"));
    }
    health.seconds = started.elapsed().as_secs_f64();
    eprintln!(
        "{}: {} events in {:.0} s, {} watches, {} lost, {} findings, {} inconclusive{}",
        health.name,
        health.events,
        health.seconds,
        health.watches,
        health.lost,
        health.findings.len(),
        health.inconclusive.len(),
        health
            .failed
            .as_ref()
            .map_or(String::new(), |why| format!(", failed: {why}"))
    );
    for finding in &health.findings {
        eprintln!("  {finding:.400}");
    }
    health
}

/// Watches until so many events were seen and so many watches made, or the time is over.
fn watch(
    regime: &Regime,
    programs: &Path,
    events: u64,
    limit: Duration,
    health: &mut Health,
) -> Result<()> {
    let started = Instant::now();
    let scene = Scene::new(programs);
    let args = regime
        .args
        .split(' ')
        .chain(["--round-trips", "0"])
        .map(str::to_owned)
        .collect::<Vec<_>>();
    let host = scene.host(regime.program, &args)?;
    // A false finding can be looked into afterwards.
    let recordings = folder().join("health");
    std::fs::create_dir_all(&recordings)?;
    while health.watches < regime.watches
        || (health.events < events && started.elapsed() < limit && !regime.idle)
    {
        let duration = format!("{}ms", regime.watch.as_millis());
        let options = [
            "--duration",
            &duration,
            "--record-findings",
            &recordings.display().to_string(),
        ];
        let tracer = scene.tracer(host.pid(), &options.map(str::to_owned))?;
        listen(&scene, regime.watch + PATIENCE, health)?;
        tracer.end()?;
        health.watches += 1;
    }
    Talker::end(host)
}

/// Takes in what a tracer says until it ends.
fn listen(scene: &Scene<'_>, patience: Duration, health: &mut Health) -> Result<()> {
    loop {
        let said = scene
            .lines
            .recv_timeout(patience)
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
    } else if line["type"] == "finding" {
        match line["state"].as_str() {
            Some("suspect") => {}
            Some("inconclusive") => health.inconclusive.push(line.to_string()),
            _ => health.findings.push(line.to_string()),
        }
    }
}
