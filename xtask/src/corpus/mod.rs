//! `cargo xtask corpus`: every fault planted many times, and healthy traffic mistreated, with shmtrace watching.
//!
//! Two counts decide: how many of the faults are found and named rightly, and how often something is found where
//! nothing is wrong. The latter must be zero.

mod faults;
mod health;
mod report;
mod sim;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    process, setup, test,
    workspace::{self, REQUIRE_PROBES},
};
use faults::{Case, Trial};
use health::{Health, REGIMES};

#[derive(Args)]
pub(crate) struct Corpus {
    /// How often each fault is planted on each lane and in each variant
    #[arg(long, default_value_t = 100)]
    runs: u64,
    /// Events of healthy traffic, over all regimes
    #[arg(long, default_value_t = 20_000_000)]
    events: u64,
    /// Only faults and regimes with this in their names
    #[arg(long)]
    only: Option<String>,
    /// The longest that one healthy regime may take, in seconds
    #[arg(long, default_value_t = 600)]
    limit: u64,
    /// Seed of moments, peers and loads
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the report goes
    #[arg(long, default_value = "docs/detection-report.md")]
    output: PathBuf,
}

impl Corpus {
    pub(crate) fn run(&self) -> Result<()> {
        setup::run()?;
        if !test::is_root() {
            bail!("tracing takes root: `sudo -E env PATH=\"$PATH\" cargo xtask corpus`");
        }
        process::run(
            workspace::cargo("build")
                .args([
                    "--release",
                    "--package",
                    "shmtrace",
                    "--package",
                    "ddc-sim",
                    "--package",
                    "rapace-peers",
                ])
                .env(REQUIRE_PROBES.0, REQUIRE_PROBES.1),
        )?;
        let mut wrong = 0;
        let faults = self.plant_all(&mut wrong)?;
        let health = self.watch_all(&mut wrong)?;
        let text = report::text(self, &faults, &health);
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

    fn plant_all(&self, wrong: &mut usize) -> Result<Vec<(Case, Vec<Result<Trial>>)>> {
        let programs = workspace::built("release");
        let mut all = Vec::new();
        if self.runs == 0 {
            return Ok(all);
        }
        for case in Case::all(&programs)?
            .into_iter()
            .filter(|case| self.wants(&case.name()))
        {
            eprint!("{}: ", case.name());
            let mut trials = Vec::new();
            for run in 0..self.runs {
                let trial = case.plant(&programs, self.seed.wrapping_add(run));
                let good = trial.as_ref().is_ok_and(|trial| {
                    trial.class_right && trial.place_right && trial.cause != faults::Verdict::Wrong
                });
                eprint!("{}", if good { '.' } else { 'X' });
                *wrong += usize::from(!good);
                trials.push(trial);
            }
            eprintln!();
            all.push((case, trials));
        }
        Ok(all)
    }

    fn watch_all(&self, wrong: &mut usize) -> Result<Vec<(&'static str, Result<Health>)>> {
        let programs = workspace::built("release");
        let regimes: Vec<_> = REGIMES
            .iter()
            .filter(|regime| self.wants(regime.name))
            .collect();
        let mut all = Vec::new();
        if self.events == 0 {
            return Ok(all);
        }
        let share = self.events / u64::try_from(regimes.len().max(1))?;
        for regime in regimes {
            let health = regime.watch(&programs, share, Duration::from_secs(self.limit));
            match &health {
                Ok(health) => {
                    eprintln!(
                        "{}: {} events, {} lost, {} findings",
                        regime.name,
                        health.events,
                        health.lost,
                        health.findings.len()
                    );
                    *wrong += health.findings.len();
                }
                Err(error) => {
                    eprintln!("{}: {error:#}", regime.name);
                    *wrong += 1;
                }
            }
            all.push((regime.name, health));
        }
        Ok(all)
    }

    fn wants(&self, name: &str) -> bool {
        self.only
            .as_ref()
            .is_none_or(|only| name.contains(only.as_str()))
    }
}
