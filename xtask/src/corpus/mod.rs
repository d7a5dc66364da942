//! `cargo xtask corpus`: every fault planted many times, and healthy traffic mistreated, with shmtrace watching.
//!
//! Two counts decide: how many of the faults are found and named rightly, and how often something is found where
//! nothing is wrong. The latter must be zero. What each part came to is kept as JSON in `target/corpus`, and the report
//! is put together from what is there, so that the parts can run one at a time.

mod cases;
mod faults;
mod health;
mod machine;
mod proofs;
mod regimes;
mod report;
pub(crate) mod sim;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use serde::{Serialize, de::DeserializeOwned};

use crate::{setup, test, workspace};

#[derive(Args)]
pub(crate) struct Corpus {
    /// What to run; the report always tells of every part that ran before
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Proofs, Part::Faults, Part::Health])]
    part: Vec<Part>,
    /// How often each fault is planted, on its lanes and in its variants in turn
    #[arg(long, default_value_t = 100)]
    runs: u64,
    /// Plant each fault that often on each lane and in each variant
    #[arg(long)]
    each_variant: bool,
    /// Trials at a time; they mostly wait
    #[arg(long, default_value_t = 3)]
    jobs: usize,
    /// Events of healthy traffic, over all regimes
    #[arg(long, default_value_t = 20_000_000)]
    events: u64,
    /// Only faults and regimes with one of these in their names
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The longest that one healthy regime may take at first, in seconds; the fastest make up for what is missing
    #[arg(long, default_value_t = 60)]
    limit: u64,
    /// Seed of moments, peers and loads
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keep a recording of each trial that went wrong in target/corpus/recordings (this costs time)
    #[arg(long)]
    record: bool,
    /// Where the report goes
    #[arg(long, default_value = "docs/detection-report.md")]
    output: PathBuf,
}

/// A part of the campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The exhaustive model and the random interleavings; needs no root
    Proofs,
    /// Planted faults
    Faults,
    /// Healthy traffic
    Health,
    /// Nothing: write the report anew
    Report,
}

impl Corpus {
    pub(crate) fn run(&self) -> Result<()> {
        let traces = self.has(Part::Faults) || self.has(Part::Health);
        if traces {
            build()?;
        }
        let mut wrong = 0;
        if self.has(Part::Proofs) {
            let proofs = proofs::run()?;
            wrong += proofs.failures();
            keep("proofs", &proofs)?;
        }
        if self.has(Part::Faults) {
            let mut faults = faults::campaign(self)?;
            wrong += faults.wrong();
            if !self.only.is_empty()
                && let Some(before) = kept("faults")?
            {
                faults.complete(before);
            }
            keep("faults", &faults)?;
        }
        if self.has(Part::Health) {
            let mut health = health::campaign(self)?;
            wrong += health.wrong();
            if !self.only.is_empty()
                && let Some(before) = kept("health")?
            {
                health.complete(before);
            }
            keep("health", &health)?;
        }
        let text = report::text(
            kept("proofs")?.as_ref(),
            kept("faults")?.as_ref(),
            kept("health")?.as_ref(),
            kept("mutants")?.as_ref(),
        );
        println!("\n{text}");
        let output = workspace::root().join(&self.output);
        if let Some(folder) = output.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        fs::write(&output, text).with_context(|| format!("cannot write {}", output.display()))?;
        if wrong > 0 {
            bail!("{wrong} verdicts were wrong or missing");
        }
        Ok(())
    }

    fn has(&self, part: Part) -> bool {
        self.part.contains(&part)
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| name.contains(only.as_str()))
    }

    /// The command line that does the same again, for the report.
    fn shown(&self, part: &str) -> String {
        let size = match part {
            "faults" => format!("--runs {} --jobs {}", self.runs, self.jobs),
            _ => format!("--events {} --limit {}", self.events, self.limit),
        };
        let each = if part == "faults" && self.each_variant {
            " --each-variant"
        } else {
            ""
        };
        let only = if self.only.is_empty() {
            String::new()
        } else {
            format!(" --only {}", self.only.join(","))
        };
        let seed = self.seed;
        format!("cargo xtask corpus --part {part} --seed {seed} {size}{each}{only}")
    }
}

fn build() -> Result<()> {
    setup::run()?;
    if !test::is_root() {
        bail!("tracing takes root: `sudo -E env PATH=\"$PATH\" cargo xtask corpus`");
    }
    workspace::build_release(&["shmtrace", "ddc-sim", "rapace-peers"])
}

/// Where results are kept between parts.
fn folder() -> PathBuf {
    workspace::built("corpus")
}

/// Keeps the result of a part.
pub(crate) fn keep(part: &str, result: &impl Serialize) -> Result<()> {
    let folder = folder();
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let path = folder.join(format!("{part}.json"));
    fs::write(&path, serde_json::to_vec_pretty(result)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The result of a part, if it ran.
pub(crate) fn kept<T: DeserializeOwned>(part: &str) -> Result<Option<T>> {
    let path = folder().join(format!("{part}.json"));
    let Ok(text) = fs::read(&path) else {
        return Ok(None);
    };
    serde_json::from_slice(&text).with_context(|| {
        format!(
            "{} is of another version: run that part again, or remove it",
            path.display()
        )
    })
}
