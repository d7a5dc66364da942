//! `cargo xtask endure`: campaigns that show whether shmtrace can be left attached to a machine that matters.

mod attach;
mod attack;
mod kernel;
mod scene;
mod watch;

use anyhow::{Result, bail};
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
}

impl Endure {
    pub(crate) fn run(&self) -> Result<()> {
        if !test::is_root() {
            bail!("tracing takes root: `sudo -E env PATH=\"$PATH\" cargo xtask endure ...`");
        }
        workspace::build_release(&["shmtrace", "ddc-sim"])?;
        let programs = workspace::built("release");
        match self {
            Self::Attach(attach) => attach.run(&programs),
            Self::Attack(attack) => attack.run(&programs),
            Self::Watch(watch) => watch.run(&programs),
        }
    }
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
fn time(text: &str) -> Result<std::time::Duration, String> {
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
        .map(std::time::Duration::from_secs)
        .ok_or_else(|| format!("{text:?} is no time: write 90s, 10m or 2h"))
}
