//! `shmtrace doctor`: can it run here, and if not, what is to be done.

mod checks;
mod self_test;

use std::io::Write;

use owo_colors::OwoColorize as _;
use serde::Serialize;

use crate::{
    exit::Exit,
    limits::{Answer, Check},
};

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub struct Doctor {
    /// Print one JSON object instead of a table
    #[arg(long, env = "SHMTRACE_JSON")]
    json: bool,

    /// Also plant each fault in a private hub, and see whether it is found: takes about half a minute
    #[arg(long, env = "SHMTRACE_SELF_TEST")]
    self_test: bool,
}

/// All of it, for scripts.
#[derive(Debug, Serialize)]
struct Report<'a> {
    version: &'static str,
    kernel: String,
    can_trace: bool,
    checks: &'a [Check],
}

impl Doctor {
    /// Looks at everything and says what it found.
    pub fn run(self) -> anyhow::Result<Exit> {
        let mut checks = checks::all();
        if self.self_test && checks.iter().all(|check| check.answer != Answer::No) {
            checks.extend(self_test::all());
        }
        let can_trace = checks.iter().all(|check| check.answer != Answer::No);
        let mut out = anstream::stdout().lock();
        if self.json {
            let kernel = rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned();
            let report = Report {
                version: env!("CARGO_PKG_VERSION"),
                kernel,
                can_trace,
                checks: &checks,
            };
            writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        } else {
            write_table(&checks, can_trace, &mut out)?;
        }
        Ok(if can_trace {
            Exit::Clean
        } else {
            Exit::NotPermitted
        })
    }
}

fn write_table(checks: &[Check], can_trace: bool, out: &mut impl Write) -> std::io::Result<()> {
    for check in checks {
        let answer = match check.answer {
            Answer::Yes => "yes    ".green().to_string(),
            Answer::Limited => "limited".yellow().to_string(),
            Answer::No => "no     ".red().bold().to_string(),
        };
        writeln!(out, "{answer}  {:<26} {}", check.name, check.detail)?;
        if let Some(remedy) = &check.remedy {
            writeln!(out, "{:37}remedy: {remedy}", "")?;
        }
    }
    let verdict = if can_trace {
        "shmtrace can trace here"
    } else {
        "shmtrace cannot trace here"
    };
    writeln!(out, "{verdict}")
}
