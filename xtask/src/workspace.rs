//! The workspace: where it is, and cargo run in it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use clap::Args;

use crate::{process, setup};

/// Makes the daemon's build script fail where it would leave the probes out.
pub(crate) const REQUIRE_PROBES: (&str, &str) = ("SHMTRACE_REQUIRE_PROBES", "1");

/// The repository's root. Cargo tells it when it runs us; what was compiled in may be another clone with the same
/// target folder.
pub(crate) fn root() -> PathBuf {
    let xtask = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    xtask
        .parent()
        .map_or_else(|| xtask.clone(), Path::to_path_buf)
}

/// The cargo that runs us, in the workspace.
pub(crate) fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg(subcommand).current_dir(root());
    command
}

/// Builds programs with optimizations, the daemon with its probes.
pub(crate) fn build_release(packages: &[&str]) -> Result<()> {
    let chosen = packages.iter().flat_map(|package| ["--package", package]);
    process::run(
        cargo("build")
            .arg("--release")
            .args(chosen)
            .env(REQUIRE_PROBES.0, REQUIRE_PROBES.1),
    )
}

/// Builds an example with optimizations.
pub(crate) fn build_release_example(package: &str, example: &str) -> Result<()> {
    process::run(
        cargo("build")
            .args(["--release", "--package", package, "--example", example])
            .env(REQUIRE_PROBES.0, REQUIRE_PROBES.1),
    )
}

/// The folder of the built programs.
pub(crate) fn built(profile: &str) -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    root().join(target).join(profile)
}

#[derive(Args)]
pub(crate) struct Build {
    /// With optimizations
    #[arg(long)]
    release: bool,
    /// For another machine, such as aarch64-unknown-linux-gnu; its linker is cargo's business
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
}

impl Build {
    pub(crate) fn run(&self) -> Result<()> {
        setup::run()?;
        let mut cargo = cargo("build");
        cargo
            .args(["--workspace", "--bins"])
            .env(REQUIRE_PROBES.0, REQUIRE_PROBES.1);
        if self.release {
            cargo.arg("--release");
        }
        if let Some(target) = &self.target {
            cargo.args(["--target", target]);
        }
        process::run(&mut cargo)
    }
}
