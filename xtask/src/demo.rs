//! `cargo xtask demo`: a lost wakeup, planted in a host with plugins, and shmtrace finding it.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    process::{self, Guard},
    setup, test, workspace,
};

/// What `shmtrace --fail-on` ends with when it found what it was to find.
const FOUND: i32 = 3;

#[derive(Args)]
pub(crate) struct Demo {
    /// The fault to plant, as `ddc-sim host --fault` takes it
    #[arg(long, default_value = "consumed-then-slept:peer=3,after=4000")]
    fault: String,
    /// The code of the finding to wait for
    #[arg(long, default_value = "missed-wakeup")]
    expect: String,
    /// Processes built on the published rapace 0.4 instead of ddc-sim; one of their signals is stolen
    #[arg(long, conflicts_with = "fault")]
    rapace: bool,
    /// How long to watch, in seconds
    #[arg(long, default_value_t = 8)]
    seconds: u64,
}

impl Demo {
    pub(crate) fn run(&self) -> Result<()> {
        setup::run()?;
        let (package, program, fault) = if self.rapace {
            (
                "rapace-peers",
                "rapace-peer-04",
                ["--steal-after", "4000:3"],
            )
        } else {
            ("ddc-sim", "ddc-sim", ["--fault", self.fault.as_str()])
        };
        workspace::build_release(&["shmtrace", package])?;
        let programs = workspace::built("release");

        let mut sim = Command::new(programs.join(program));
        sim.args([
            "host",
            "--plugins",
            "4",
            "--round-trips",
            "0",
            "--gap",
            "500us",
        ])
        .args(fault);
        sim.stdin(Stdio::null()).stdout(Stdio::null());
        println!("\nA host and 4 plugins, about to lose a wakeup:");
        let host = Guard(process::show_and_spawn(&mut sim)?);
        // Not needed by shmtrace, which follows what comes; but a host that ends at once deserves its own message.
        std::thread::sleep(Duration::from_millis(200));

        let status = self.watch(&programs.join("shmtrace"), host.0.id());
        host.end()?;
        match status? {
            Some(FOUND) => {
                println!("\nFound: {}, planted by {}.", self.expect, fault.join(" "));
                Ok(())
            }
            Some(code) => bail!(
                "the hang planted by {} was not found: shmtrace ended with {code} instead of {FOUND}",
                fault.join(" ")
            ),
            None => bail!("shmtrace was ended by a signal"),
        }
    }

    fn watch(&self, shmtrace: &Path, host: u32) -> Result<Option<i32>> {
        let mut watch = if test::is_root() {
            Command::new(shmtrace)
        } else {
            let mut sudo = Command::new("sudo");
            sudo.arg(shmtrace);
            sudo
        };
        watch.args(["--pid-tree", &host.to_string()]);
        watch.args([
            "--duration",
            &format!("{}s", self.seconds),
            "--fail-on",
            &self.expect,
        ]);
        println!("\nAnd what an operator types:");
        let mut child = process::show_and_spawn(&mut watch)?;
        println!();
        Ok(child.wait().context("cannot wait for shmtrace")?.code())
    }
}
