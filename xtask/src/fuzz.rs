//! `cargo xtask fuzz`: bytes that nobody expects, for everything that shmtrace reads and somebody else wrote.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{process, toolchain::NIGHTLY, workspace};

/// What can be fuzzed, each a file in `fuzz/fuzz_targets`.
const TARGETS: [&str; 6] = ["hub", "netlink", "proc", "recording", "records", "steps"];
const CARGO_FUZZ: &str = "0.13.2";
/// Megabytes that a target may use; the inputs are small, so what needs more takes numbers in them at their word.
const MOST_MEMORY: u32 = 2048;
/// Seconds that one input may take: none takes more than a few milliseconds.
const LONGEST: u32 = 10;
/// Bytes of an input at most: the largest seed has 19 KiB.
const LARGEST: u32 = 32 << 10;

#[derive(Args)]
pub(crate) struct Fuzz {
    /// Only this one
    #[arg(value_parser = TARGETS)]
    target: Option<String>,
    /// How long for each
    #[arg(long, default_value_t = 300)]
    seconds: u32,
}

impl Fuzz {
    pub(crate) fn run(&self) -> Result<()> {
        install()?;
        let wanted = |target: &&str| self.target.as_ref().is_none_or(|only| only == target);
        let targets: Vec<&str> = TARGETS.into_iter().filter(wanted).collect();
        run(&targets, Limit::Seconds(self.seconds))
    }
}

/// How long a target runs.
#[derive(Clone, Copy)]
enum Limit {
    /// From what earlier runs found on.
    Seconds(u32),
    /// The same inputs each time: so many, made from the seeds alone.
    Inputs(u32),
}

fn run(targets: &[&str], limit: Limit) -> Result<()> {
    build()?;
    let mut failed = Vec::new();
    for target in targets {
        if let Err(error) = fuzz(target, limit) {
            eprintln!("{target}: {error:#}");
            failed.push(*target);
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!(
        "{} failed: the input is below fuzz/artifacts, and once it is mended it belongs into fuzz/seeds",
        failed.join(", ")
    )
}

/// Inputs of each target among the tests.
const AMONG_TESTS: u32 = 1000;

/// A short run of every target, for the tests. Where the compiler with sanitizers cannot be had, the seeds have been
/// replayed all the same, by an ordinary test.
pub(crate) fn briefly() -> Result<()> {
    if let Err(error) = install() {
        println!("no fuzzers here, only their seeds: {error:#}");
        return Ok(());
    }
    run(&TARGETS, Limit::Inputs(AMONG_TESTS))
}

/// The compiler with sanitizers, and cargo-fuzz.
fn install() -> Result<()> {
    if !process::succeeds(&mut in_toolchain(&["rustc", "--version"])) {
        process::run(&mut process::command(
            "rustup",
            ["toolchain", "install", NIGHTLY, "--profile", "minimal"],
        ))
        .with_context(|| format!("fuzzers need {NIGHTLY}, which has sanitizers"))?;
    }
    if !process::succeeds(&mut in_toolchain(&["cargo", "fuzz", "--version"])) {
        let install = ["install", "cargo-fuzz", "--version", CARGO_FUZZ, "--locked"];
        process::run(in_toolchain(&["cargo"]).args(install))?;
    }
    Ok(())
}

/// Builds all targets. The probes are not needed.
fn build() -> Result<()> {
    process::run(
        in_toolchain(&["cargo", "fuzz", "build", "--fuzz-dir", "."])
            .current_dir(folder())
            .env("AYA_BUILD_SKIP", "1"),
    )
}

/// What is found goes to `fuzz/corpus`, and what fails to `fuzz/artifacts`; neither is kept in the repository.
fn fuzz(target: &str, limit: Limit) -> Result<()> {
    let (corpus, limit) = match limit {
        // Seed 0 is another one each time.
        Limit::Seconds(seconds) => (
            format!("corpus/{target}"),
            [format!("-max_total_time={seconds}"), "-seed=0".to_owned()],
        ),
        Limit::Inputs(inputs) => {
            let corpus = format!("corpus/from-seeds/{target}");
            if let Err(error) = fs::remove_dir_all(folder().join(&corpus))
                && error.kind() != std::io::ErrorKind::NotFound
            {
                return Err(error).with_context(|| format!("cannot empty fuzz/{corpus}"));
            }
            (corpus, [format!("-runs={inputs}"), "-seed=1".to_owned()])
        }
    };
    fs::create_dir_all(folder().join(&corpus))
        .with_context(|| format!("cannot create fuzz/{corpus}"))?;
    let mut cargo = in_toolchain(&["cargo", "fuzz", "run", "--fuzz-dir", ".", target]);
    cargo.args([corpus, format!("seeds/{target}")]);
    cargo.args(["--", "-print_final_stats=1"]).args(limit);
    cargo.args([
        format!("-rss_limit_mb={MOST_MEMORY}"),
        format!("-timeout={LONGEST}"),
        format!("-max_len={LARGEST}"),
    ]);
    let dictionary = format!("dictionaries/{target}");
    if folder().join(&dictionary).is_file() {
        cargo.arg(format!("-dict={dictionary}"));
    }
    process::run(cargo.current_dir(folder()).env("AYA_BUILD_SKIP", "1"))
}

/// A command of the compiler that has sanitizers.
fn in_toolchain(words: &[&str]) -> Command {
    let mut command = process::command("rustup", ["run", NIGHTLY]);
    command.args(words);
    // Set by the cargo that runs us, for its own compiler.
    for name in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(name);
    }
    command
}

fn folder() -> PathBuf {
    workspace::root().join("fuzz")
}
