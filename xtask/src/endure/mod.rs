//! `cargo xtask endure`: campaigns that show whether shmtrace can be left attached to a machine that matters.

mod attach;
mod attack;
mod kernel;
mod scene;
mod watch;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;

use crate::{test, workspace};

/// A campaign.
#[derive(Subcommand)]
pub(crate) enum Endure {
    /// Attach, detach and kill the daemon again and again over a tree in traffic: nobody may notice, nothing may be left
    Attach(attach::Attach),
    /// Watch a hub that an enemy cuts, scribbles on and replaces, beside one in traffic
    Attack(attack::Attack),
    /// Watch traffic with plugins that come and go, and see what the daemon grows by
    Watch(watch::Watch),
    /// The first two for some seconds, on the debug build, as `cargo xtask test` does
    Briefly,
}

impl Endure {
    pub(crate) fn run(&self) -> Result<()> {
        if !test::is_root() {
            bail!("tracing takes root: `sudo -E env PATH=\"$PATH\" cargo xtask endure ...`");
        }
        let release = || {
            workspace::build_release(&["shmtrace", "ddc-sim"])?;
            anyhow::Ok(workspace::built("release"))
        };
        match self {
            Self::Attach(attach) => attach.run(&release()?),
            Self::Attack(attack) => attack.run(&release()?),
            Self::Watch(watch) => watch.run(&release()?),
            Self::Briefly => briefly(),
        }
    }
}

/// The first two for some seconds, on the programs that the tests have built. Others use the machine meanwhile.
pub(crate) fn briefly() -> Result<()> {
    let programs = workspace::built("debug");
    attach::Attach {
        times: 20,
        kills: 5,
        seed: 1,
    }
    .run(&programs)
    .context("attaching and killing leaves something behind, or was noticed")?;
    attack::Attack {
        time: Duration::from_secs(5),
        seed: 1,
        not_alone: true,
    }
    .run(&programs)
    .context("an attacked hub harms the watch")
}

/// Collects what was measured and what had to hold.
#[derive(Default)]
struct Verdict {
    broken: Vec<String>,
}

impl Verdict {
    /// Says what was measured; it had to be so.
    fn expect(&mut self, holds: bool, what: &str, measured: impl std::fmt::Display) {
        println!(
            "| {what} | {measured} | {} |",
            if holds { "holds" } else { "BROKEN" }
        );
        if !holds {
            self.broken.push(format!("{what}: {measured}"));
        }
    }

    /// Says what was measured.
    fn tell(what: &str, measured: impl std::fmt::Display) {
        println!("| {what} | {measured} | |");
    }

    fn end(self) -> Result<()> {
        if self.broken.is_empty() {
            return Ok(());
        }
        bail!("{}", self.broken.join("; "))
    }
}

/// The head of the table that a [`Verdict`] fills.
fn table() {
    println!("| what | measured | |\n|---|---|---|");
}

/// A time as words such as `10m` or `90s`.
fn time(text: &str) -> Result<Duration, String> {
    let (digits, unit) = text.split_at(text.trim_end_matches(char::is_alphabetic).len());
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(format!("{text:?} is no time: write 90s, 10m or 2h")),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|count| count.checked_mul(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| format!("{text:?} is no time: write 90s, 10m or 2h"))
}
