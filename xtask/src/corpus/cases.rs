//! Which faults there are, what must be found of each, and which trials a campaign consists of.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::sim::Dice;
use crate::process;

/// A fault to plant: its kind, on one lane, in one variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Case {
    /// The stand-in that plants it.
    pub(crate) program: &'static str,
    pub(crate) kind: String,
    pub(crate) variant: Option<String>,
    pub(crate) lane: String,
}

/// What a finding must say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) code: &'static str,
    /// Where the code has causes.
    pub(crate) cause: Option<&'static str>,
    pub(crate) state: &'static str,
    /// How long the state must last by the detector's rule, before its first report.
    pub(crate) lasts: Duration,
}

/// Quiet that is taken for a hang where a finding depends on it.
const PROGRESS: Duration = Duration::from_millis(500);
/// The grace that shmtrace has by default.
const GRACE: Duration = Duration::from_millis(50);

/// What must be found, by the name of the fault.
pub(crate) fn expected(kind: &str) -> Option<Expected> {
    let held = |code, cause, lasts| {
        Some(Expected {
            code,
            cause,
            state: "missed",
            lasts,
        })
    };
    let missed = |cause| held("missed-wakeup", Some(cause), GRACE);
    let plain = |code, lasts| held(code, None, lasts);
    match kind {
        // A missed wakeup that an unrelated signal healed before the grace was over.
        "masked" => Some(Expected {
            code: "missed-wakeup",
            cause: Some("consumed-then-slept"),
            state: "masked",
            lasts: Duration::ZERO,
        }),
        "consumed-then-slept" => missed("consumed-then-slept"),
        "rung-before-publish" => missed("rung-before-publish"),
        "never-rung" | "never-rung-dead" => missed("never-rung"),
        "ring-failed" => missed("ring-failed"),
        "wrong-doorbell" => missed("wrong-doorbell"),
        "stolen" => missed("stolen"),
        "not-draining" => plain("not-draining", GRACE),
        "consumer-blocked" => plain("consumer-blocked", GRACE),
        "never-enqueued" => plain("never-enqueued", PROGRESS),
        "unanswered" => plain("unanswered", PROGRESS),
        "ring-full" => plain("ring-full", GRACE),
        "slots-stuck" => plain("slots-stuck", Duration::from_secs(2)),
        "ring-corrupt" => plain("ring-corrupt", Duration::ZERO),
        "peer-died" => plain("peer-died", Duration::from_millis(400)),
        "starved" => plain("starved", Duration::from_secs(1)),
        "memory-limit" => plain("memory-limit", Duration::from_secs(1)),
        _ => None,
    }
}

impl Case {
    /// Everything that `ddc-sim faults` lists, and the thefts and deaths that hosts on the published crates can have.
    pub(crate) fn all(programs: &Path) -> Result<Vec<Self>> {
        let listed = process::output(&mut process::command(
            &programs.join("ddc-sim").to_string_lossy(),
            ["faults"],
        ));
        let mut cases = parse(&listed.context("`ddc-sim faults` fails")?)?;
        for program in ["rapace-peer-04", "rapace-peer-05"] {
            for (kind, variant) in [
                ("stolen", "process"),
                ("stolen", "host"),
                ("peer-died", "killed"),
            ] {
                cases.push(Self {
                    program,
                    kind: kind.to_owned(),
                    variant: Some(variant.to_owned()),
                    lane: "host->peer".to_owned(),
                });
            }
        }
        Ok(cases)
    }

    /// The row of the report that it belongs to.
    pub(crate) fn group(&self) -> String {
        match self.program {
            "ddc-sim" => self.kind.clone(),
            other => format!("{} on {other}", self.kind),
        }
    }

    pub(crate) fn name(&self) -> String {
        let variant = self
            .variant
            .as_deref()
            .map_or(String::new(), |variant| format!(" ({variant})"));
        format!("{}{variant} {}", self.group(), self.lane)
    }

    /// What shmtrace must be told to find it.
    pub(crate) fn tracing(&self) -> Vec<String> {
        // Only these two need to be told that quiet is wrong.
        if ["never-enqueued", "unanswered"].contains(&self.kind.as_str()) {
            let progress = format!("{}ms", PROGRESS.as_millis());
            vec!["--expect-progress".to_owned(), progress]
        } else {
            Vec::new()
        }
    }

    /// The host's arguments: a number of plugins, a runtime, a load and a moment by the dice of this seed.
    pub(crate) fn host_args(&self, seed: u64) -> Vec<String> {
        let mut dice = Dice::new(seed);
        let plugins: u64 = *dice.one_of(&[1, 4, 16]);
        let gap = *dice.one_of(&["0s", "50us", "200us", "1ms"]);
        // Published rapace hosts block worker threads, and need some.
        let runtime = match self.program {
            "ddc-sim" => *dice.one_of(&["multi", "current"]),
            _ => "multi",
        };
        // A signal to the wrong doorbell takes two of them.
        let least = if self.kind == "wrong-doorbell" { 2 } else { 1 };
        let mut words = vec!["--plugins".to_owned(), plugins.max(least).to_string()];
        words.extend(["--round-trips", "0", "--gap", gap, "--runtime", runtime].map(str::to_owned));
        words.extend(["--payload", "0..1K", "--start-on-line"].map(str::to_owned));
        words.extend(["--seed".to_owned(), seed.to_string()]);
        words.extend(self.fault_args(&mut dice, plugins.max(least)));
        words
    }

    fn fault_args(&self, dice: &mut Dice, plugins: u64) -> Vec<String> {
        let variant = self.variant.as_deref().unwrap_or_default();
        if self.program == "ddc-sim" {
            let variant = if variant.is_empty() {
                String::new()
            } else {
                format!(",variant={variant}")
            };
            let fault = format!(
                "{}:peer=random,after=random,lane={}{variant}",
                self.kind, self.lane
            );
            return vec!["--fault".to_owned(), fault];
        }
        if self.kind == "stolen" {
            let theft = format!("{}:{}", dice.below(300) + 1, dice.below(plugins));
            return ["--steal-after", &theft, "--thief", variant]
                .map(str::to_owned)
                .to_vec();
        }
        // Killed from outside.
        Vec::new()
    }
}

/// The trials of a campaign, in the order of their groups: each with its seed.
pub(crate) fn trials(
    cases: Vec<Case>,
    runs: u64,
    seed: u64,
    each_variant: bool,
) -> Vec<(Case, u64)> {
    let mut groups: BTreeMap<String, Vec<Case>> = BTreeMap::new();
    for case in cases {
        groups.entry(case.group()).or_default().push(case);
    }
    let mut trials = Vec::new();
    for cases in groups.into_values() {
        let times = cases.len() as u64;
        // Published crates get smaller numbers.
        let foreign = cases.iter().any(|case| case.program != "ddc-sim");
        let runs = if foreign { runs.div_ceil(5) } else { runs };
        let all = if each_variant { runs * times } else { runs };
        for (run, case) in (0..all).zip(cases.iter().cycle()) {
            trials.push((case.clone(), seed.wrapping_mul(1_000_000).wrapping_add(run)));
        }
    }
    trials
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
                    program: "ddc-sim",
                    kind: kind.to_owned(),
                    variant: variant.map(str::to_owned),
                    lane: (*lane).to_owned(),
                });
            }
        }
    }
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::{Case, parse, trials};

    const LISTED: &str = "stolen               host->peer peer->host    process host\n\
                          unanswered           peer->host               \n";

    #[test]
    fn cases_are_kinds_times_lanes_times_variants() {
        let cases = parse(LISTED).expect("both are known");
        let names: Vec<String> = cases.iter().map(Case::name).collect();
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

    #[test]
    fn variants_and_lanes_share_the_runs_of_a_kind_unless_each_is_wanted() {
        let count = |each| {
            let trials = trials(parse(LISTED).expect("both are known"), 10, 1, each);
            let of = |name: &str| {
                trials
                    .iter()
                    .filter(|(case, _)| case.name() == name)
                    .count()
            };
            (
                of("stolen (process) host->peer"),
                of("stolen (host) peer->host"),
                of("unanswered peer->host"),
            )
        };
        assert_eq!(count(false), (3, 2, 10));
        assert_eq!(count(true), (10, 10, 10));
    }
}
