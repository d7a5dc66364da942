//! `cargo xtask test`: every test there is, with nothing left out for want of rights or tools.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    apt, endure, fuzz, process, setup,
    workspace::{self, REQUIRE_PROBES},
};

#[derive(Args)]
pub(crate) struct Test {
    /// Only this package
    #[arg(short, long)]
    package: Option<String>,
    /// Passed to the tests, such as a part of their names
    #[arg(last = true)]
    args: Vec<String>,
}

impl Test {
    pub(crate) fn run(&self) -> Result<()> {
        setup::run()?;
        if !is_root() {
            bail!(
                "the tests load probes and trace processes, which takes root: `sudo -E env PATH=\"$PATH\" cargo xtask test`"
            );
        }
        mount_tracefs()?;
        // Maps foreign and damaged files as a hub, for the tests of bad input.
        if !process::succeeds(&mut process::command("python3", ["-c", "import mmap"])) {
            apt::install(&["python3"]).context("cannot install python3, which tests use")?;
        }

        // Tests start programs of other packages, which `cargo test` alone need not build.
        process::run(
            workspace::cargo("build")
                .args(["--workspace", "--bins"])
                .env(REQUIRE_PROBES.0, REQUIRE_PROBES.1),
        )?;
        let totals = self.run_tests()?;
        println!(
            "all tests: {} passed, {} failed, {} ignored",
            totals.passed, totals.failed, totals.ignored
        );
        if totals.ignored > 0 {
            bail!("{} tests were ignored, and none may be", totals.ignored);
        }
        if totals.passed == 0 {
            bail!("no test ran");
        }
        if self.package.is_none() && self.args.is_empty() {
            fuzz::briefly()?;
            endure::briefly()?;
        }
        Ok(())
    }

    fn run_tests(&self) -> Result<Totals> {
        let mut cargo = workspace::cargo("test");
        match &self.package {
            Some(package) => cargo.args(["--package", package]),
            None => cargo.arg("--workspace"),
        };
        cargo
            .arg("--no-fail-fast")
            .args(["--", "--include-ignored"])
            .args(&self.args);
        cargo
            .env(REQUIRE_PROBES.0, REQUIRE_PROBES.1)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = process::show_and_spawn(&mut cargo)?;

        let mut totals = Totals::default();
        let output = child.stdout.take().context("cargo test has no output")?;
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("cannot read the output of cargo test")?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            totals.add(&line);
        }
        let status = child.wait().context("cannot wait for cargo test")?;
        if !status.success() {
            bail!(
                "tests failed: {} passed, {} failed ({status})",
                totals.passed,
                totals.failed
            );
        }
        Ok(totals)
    }
}

/// The sums of cargo's `test result:` lines.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Totals {
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        for part in result.split(['.', ';']) {
            let Some((count, what)) = part.trim().split_once(' ') else {
                continue;
            };
            let Ok(count) = count.parse::<u64>() else {
                continue;
            };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Classic tracepoints get their ids from there.
pub(crate) fn mount_tracefs() -> Result<()> {
    let tracefs = "/sys/kernel/tracing";
    if Path::new(tracefs).join("events").exists() {
        return Ok(());
    }
    if fs::metadata(tracefs).is_err() {
        bail!("this kernel has no {tracefs}: it is built without tracing, and the probes need it");
    }
    process::run(&mut process::command(
        "mount",
        ["-t", "tracefs", "tracefs", tracefs],
    ))
}

#[cfg(test)]
mod tests {
    use super::Totals;

    #[test]
    fn totals_of_several_binaries() {
        let mut totals = Totals::default();
        totals.add("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s");
        totals.add("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s");
        totals.add("a line of 7 passed; that is none of cargo's");
        assert_eq!(
            totals,
            Totals {
                passed: 13,
                failed: 2,
                ignored: 1
            }
        );
    }
}
