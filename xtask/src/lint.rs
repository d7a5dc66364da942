//! `cargo xtask lint`: the same for the workspace and for the probes, which are a workspace of their own.

use std::path::Path;

use anyhow::{Result, bail};

use crate::{
    process, setup,
    workspace::{self, REQUIRE_PROBES},
};

pub(crate) fn run() -> Result<()> {
    // The daemon is another program without probes; that one is not what is shipped.
    setup::run()?;
    let probes = workspace::root().join("shmtrace-ebpf");
    let probes_target = workspace::built("lint-probes");
    // All of them, so that one run shows everything that is wrong.
    let mut checks = Vec::new();
    for folder in [&workspace::root(), &probes] {
        checks.push(process::run(
            workspace::cargo("fmt")
                .args(["--all", "--check"])
                .current_dir(folder),
        ));
    }
    checks.push(process::run(
        clippy(&workspace::root())
            .args(["--workspace", "--all-targets", "--keep-going"])
            .args(DENY),
    ));
    // Checked for this machine: clippy of the BPF target would need the other toolchain to have it. The folder's
    // .cargo/config.toml is for the BPF targets only, so nothing of it applies.
    checks.push(process::run(
        clippy(&probes)
            .env("CARGO_TARGET_DIR", probes_target)
            .args(DENY),
    ));
    checks.push(check_other_machine());
    let failed: Vec<String> = checks
        .into_iter()
        .filter_map(|check| Some(format!("{:#}", check.err()?)))
        .collect();
    if failed.is_empty() {
        Ok(())
    } else {
        bail!("{}", failed.join("; "))
    }
}

/// The other machine that is promised.
const OTHER: &str = "aarch64-unknown-linux-gnu";

/// Daemon and probes, checked for the other machine: what differs there is compiled nowhere else. Nothing is linked, so no
/// linker of its own is needed; but a standard library, which only rustup has.
fn check_other_machine() -> Result<()> {
    let add = ["target", "add", OTHER];
    if !process::succeeds(&mut process::command("rustup", add)) {
        println!("{OTHER} is not checked: `rustup target add {OTHER}` does not work here");
        return Ok(());
    }
    process::run(
        clippy(&workspace::root())
            .args(["--package", "shmtrace", "--target", OTHER])
            .args(DENY),
    )
}

const DENY: [&str; 3] = ["--", "-D", "warnings"];

fn clippy(folder: &Path) -> std::process::Command {
    let mut cargo = workspace::cargo("clippy");
    cargo
        .current_dir(folder)
        .env(REQUIRE_PROBES.0, REQUIRE_PROBES.1);
    cargo
}
