//! `cargo xtask lint`: the same for the workspace and for the probes, which are a workspace of their own.

use std::path::Path;

use anyhow::Result;

use crate::{
    process, setup,
    workspace::{self, REQUIRE_PROBES},
};

pub(crate) fn run() -> Result<()> {
    // The daemon is another program without probes; that one is not what is shipped.
    setup::run()?;
    let probes = workspace::root().join("shmtrace-ebpf");
    let probes_target = workspace::built("lint-probes");
    for folder in [&workspace::root(), &probes] {
        process::run(
            workspace::cargo("fmt")
                .args(["--all", "--check"])
                .current_dir(folder),
        )?;
    }
    process::run(
        clippy(&workspace::root())
            .args(["--workspace", "--all-targets"])
            .args(DENY),
    )?;
    // Checked for this machine: clippy of the BPF target would need the other toolchain to have it. The folder's
    // .cargo/config.toml is for the BPF targets only, so nothing of it applies.
    process::run(
        clippy(&probes)
            .env("CARGO_TARGET_DIR", probes_target)
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
