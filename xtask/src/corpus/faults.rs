//! Planted faults: each kind on each of its lanes in each of its variants, at random moments, and what must be found.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::sim::{Said, Scene, Speaker};
use crate::process;

/// How long a fault may stay unseen.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a moment may take to come.
const PLANTING: Duration = Duration::from_secs(40);
/// Quiet that is taken for a hang where a finding depends on it.
const PROGRESS: &str = "2s";

/// A fault to plant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) kind: String,
    variant: Option<String>,
    lane: String,
}

/// What planting it once came to.
#[derive(Debug, Clone)]
pub(crate) struct Trial {
    /// Code and cause of the first finding that is not a mere suspicion, if there was any.
    pub(crate) found: Option<(String, Option<String>)>,
    pub(crate) class_right: bool,
    pub(crate) place_right: bool,
    pub(crate) cause: Verdict,
    /// From the moment when the fault was in place.
    pub(crate) delay: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Right,
    Unknown,
    Wrong,
}

/// What a finding must say: its code, and its cause if the code has causes.
fn expected(kind: &str) -> Option<(&'static str, Option<&'static str>)> {
    let missed = |cause| Some(("missed-wakeup", Some(cause)));
    match kind {
        // A masked one is a missed wakeup that an unrelated signal healed.
        "consumed-then-slept" | "masked" => missed("consumed-then-slept"),
        "rung-before-publish" => missed("rung-before-publish"),
        "never-rung" | "never-rung-dead" => missed("never-rung"),
        "ring-failed" => missed("ring-failed"),
        "wrong-doorbell" => missed("wrong-doorbell"),
        "stolen" => missed("stolen"),
        "not-draining" => Some(("not-draining", None)),
        "consumer-blocked" => Some(("consumer-blocked", None)),
        "never-enqueued" => Some(("never-enqueued", None)),
        "unanswered" => Some(("unanswered", None)),
        "ring-full" => Some(("ring-full", None)),
        "slots-stuck" => Some(("slots-stuck", None)),
        "ring-corrupt" => Some(("ring-corrupt", None)),
        "peer-died" => Some(("peer-died", None)),
        "starved" => Some(("starved", None)),
        "memory-limit" => Some(("memory-limit", None)),
        _ => None,
    }
}

impl Case {
    /// All that `ddc-sim faults` lists.
    pub(crate) fn all(programs: &Path) -> Result<Vec<Self>> {
        let listed = process::output(&mut process::command(
            &programs.join("ddc-sim").to_string_lossy(),
            ["faults"],
        ));
        parse(&listed.context("`ddc-sim faults` fails")?)
    }

    pub(crate) fn name(&self) -> String {
        let variant = self
            .variant
            .as_deref()
            .map_or(String::new(), |variant| format!(" ({variant})"));
        format!("{}{variant} {}", self.kind, self.lane)
    }

    /// Plants it once. Odd seeds trace a host with worker threads, every third one with many peers.
    pub(crate) fn plant(&self, programs: &Path, seed: u64) -> Result<Trial> {
        let (code, cause) = expected(&self.kind)
            .with_context(|| format!("no finding is known for {}", self.kind))?;
        let scene = Scene::new(programs);
        let host = scene.host("ddc-sim", &self.host_args(seed))?;
        wait_for(&scene, PLANTING, |said| {
            said.speaker == Speaker::Sim && event(said) == Some("ready")
        })?
        .context("ddc-sim ended before its first call")?;
        // Only these two need to be told that quiet is wrong.
        let quiet_is_wrong = ["never-enqueued", "unanswered"].contains(&self.kind.as_str());
        let options = if quiet_is_wrong {
            vec!["--expect-progress".to_owned(), PROGRESS.to_owned()]
        } else {
            Vec::new()
        };
        let mut tracer = scene.tracer(host.pid(), &options)?;
        let trial = self.observe(&scene, code, cause);
        tracer.interrupt()?;
        tracer.end()?;
        host.end()?;
        trial
    }

    fn host_args(&self, seed: u64) -> Vec<String> {
        let plugins = ["4", "16", "1"][usize::try_from(seed % 3).unwrap_or_default()];
        // A signal to the wrong doorbell takes two of them.
        let plugins = if self.kind == "wrong-doorbell" && plugins == "1" {
            "2"
        } else {
            plugins
        };
        let runtime = if seed % 2 == 1 { "multi" } else { "current" };
        let gap = ["200us", "0s", "2ms", "50us"][usize::try_from(seed % 4).unwrap_or_default()];
        let variant = self
            .variant
            .as_deref()
            .map_or(String::new(), |variant| format!(",variant={variant}"));
        let fault = format!(
            "{}:peer=random,after=random,lane={}{variant}",
            self.kind, self.lane
        );
        let seed = seed.to_string();
        let words = [
            "--plugins",
            plugins,
            "--round-trips",
            "0",
            "--gap",
            gap,
            "--runtime",
            runtime,
            "--seed",
            &seed,
            "--payload",
            "0..1K",
            "--start-delay",
            "1s",
            "--fault",
            &fault,
        ];
        words.map(str::to_owned).to_vec()
    }

    /// Waits for the fault and for the finding, in whichever order they are told.
    fn observe(&self, scene: &Scene<'_>, code: &str, cause: Option<&str>) -> Result<Trial> {
        let mut fault: Option<Value> = None;
        let mut findings: Vec<Value> = Vec::new();
        let mut deadline = Instant::now() + PLANTING;
        let verdict =
            |finding: &Value| finding["state"] != "suspect" && finding["state"] != "inconclusive";
        while let Some(said) = next(scene, deadline) {
            let Some(line) = said.line else {
                bail!("{:?} ended early", said.speaker)
            };
            match said.speaker {
                Speaker::Sim if line["event"] == "fault" => {
                    fault = Some(line);
                    deadline = Instant::now() + PATIENCE;
                }
                Speaker::Tracer if line["type"] == "finding" && verdict(&line) => {
                    findings.push(line);
                }
                _ => {}
            }
            if fault.is_some() && findings.iter().any(|finding| finding["code"] == code) {
                break;
            }
        }
        let fault = fault.with_context(|| format!("ddc-sim did not plant {}", self.name()))?;
        let right = findings.iter().find(|finding| finding["code"] == code);
        let Some(finding) = right.or(findings.first()) else {
            return Ok(Trial {
                found: None,
                class_right: false,
                place_right: false,
                cause: Verdict::Unknown,
                delay: PATIENCE,
            });
        };
        let at =
            |value: &Value| Duration::from_nanos(value["mono_ns"].as_u64().unwrap_or_default());
        let said = finding["cause"].as_str();
        Ok(Trial {
            found: Some((
                finding["code"].as_str().unwrap_or("none").to_owned(),
                said.map(str::to_owned),
            )),
            class_right: right.is_some()
                && findings.first().is_some_and(|first| first["code"] == code),
            // Some findings are about more than one lane.
            place_right: finding["peer"].is_null() || finding["peer"]["id"] == fault["peer"],
            cause: match (cause, said) {
                (None, _) => Verdict::Right,
                (Some(expected), Some(said)) if expected == said => Verdict::Right,
                (Some(_), None | Some("unknown")) => Verdict::Unknown,
                (Some(_), Some(_)) => Verdict::Wrong,
            },
            delay: at(finding).saturating_sub(at(&fault)),
        })
    }
}

fn parse(listed: &str) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for line in listed.lines() {
        let mut words = line.split_whitespace();
        let kind = words.next().context("a fault without a name")?;
        if expected(kind).is_none() {
            bail!("ddc-sim plants {kind}, and nobody says here what must be found");
        }
        let (lanes, variants): (Vec<&str>, Vec<&str>) = words.partition(|word| word.contains("->"));
        let variants: Vec<Option<&str>> = if variants.is_empty() {
            vec![None]
        } else {
            variants.into_iter().map(Some).collect()
        };
        for lane in &lanes {
            for variant in &variants {
                cases.push(Case {
                    kind: kind.to_owned(),
                    variant: variant.map(str::to_owned),
                    lane: (*lane).to_owned(),
                });
            }
        }
    }
    Ok(cases)
}

/// The next line of anybody, until a moment.
fn next(scene: &Scene<'_>, deadline: Instant) -> Option<Said> {
    scene
        .lines
        .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        .ok()
}

/// Waits for a line; nothing if its speaker ends first.
fn wait_for(
    scene: &Scene<'_>,
    time: Duration,
    wanted: impl Fn(&Said) -> bool,
) -> Result<Option<Said>> {
    let deadline = Instant::now() + time;
    loop {
        let said = next(scene, deadline).context("nothing is said")?;
        if wanted(&said) {
            return Ok(Some(said));
        }
        if said.line.is_none() {
            return Ok(None);
        }
    }
}

fn event(said: &Said) -> Option<&str> {
    said.line.as_ref()?["event"].as_str()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn cases_are_kinds_times_lanes_times_variants() {
        let cases = parse(
            "stolen               host->peer peer->host    process host\n\
             unanswered           peer->host               \n",
        )
        .expect("both are known");
        let names: Vec<String> = cases.iter().map(super::Case::name).collect();
        assert_eq!(
            names,
            [
                "stolen (process) host->peer",
                "stolen (host) host->peer",
                "stolen (process) peer->host",
                "stolen (host) peer->host",
                "unanswered peer->host"
            ]
        );
        assert!(parse("unheard-of host->peer").is_err());
    }
}
