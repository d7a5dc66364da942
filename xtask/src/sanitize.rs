//! `cargo xtask sanitize`: the transport's own tests where every access to memory is watched.

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use crate::{process, toolchain::NIGHTLY, workspace};

/// What the thread sanitizer is built for: the only target of ours that it and the tests both run on everywhere.
const TARGET: &str = "x86_64-unknown-linux-gnu";

#[derive(Args)]
pub(crate) struct Sanitize {
    /// Who watches
    watcher: Watcher,
    /// Only tests with this in their names
    pattern: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Watcher {
    /// Miri: undefined behaviour and data races, in everything that needs no file, socket or second process
    Miri,
    /// The thread sanitizer: data races between the threads of one process, in everything else too
    Thread,
}

impl Sanitize {
    pub(crate) fn run(&self) -> Result<()> {
        let components: &[&str] = match self.watcher {
            Watcher::Miri => &["miri", "rust-src"],
            Watcher::Thread => &["rust-src"],
        };
        for component in components {
            process::run(&mut process::command(
                "rustup",
                ["component", "add", component, "--toolchain", NIGHTLY],
            ))
            .with_context(|| {
                format!("sanitizers need {NIGHTLY}: run `rustup toolchain install {NIGHTLY}`")
            })?;
        }
        let mut command = process::command("rustup", ["run", NIGHTLY, "cargo"]);
        command.current_dir(workspace::root());
        // Set by the cargo that runs us, for its own compiler.
        for name in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN"] {
            command.env_remove(name);
        }
        match self.watcher {
            Watcher::Miri => {
                // The clock of heartbeats is the machine's.
                command.env("MIRIFLAGS", "-Zmiri-disable-isolation").args([
                    "miri",
                    "test",
                    "--package",
                    "shm-transport",
                    "--lib",
                ]);
            }
            Watcher::Thread => {
                let known = workspace::root().join("shm-transport/tests/tsan.suppressions");
                command
                    .env("RUSTFLAGS", "-Zsanitizer=thread")
                    // A report is a failure, and the end.
                    .env(
                        "TSAN_OPTIONS",
                        format!("halt_on_error=1 suppressions={}", known.display()),
                    )
                    .args(["test", "-Zbuild-std", "--target", TARGET])
                    .args(["--package", "shm-transport", "--lib"])
                    .args(["--test", "lanes", "--test", "hostile"]);
            }
        }
        command.args(["--"]).args(&self.pattern);
        process::run(&mut command)
    }
}
