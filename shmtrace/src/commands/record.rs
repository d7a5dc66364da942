//! `shmtrace record` and `shmtrace replay`: keep everything that was seen, and judge it again.

use std::{fs::File, io::BufReader, path::PathBuf};

use anyhow::Context as _;

use super::watch::{self, Tracing};
use crate::{
    cli::PidTree,
    exit::{self, Exit},
    recording::Recording,
    report::WallClock,
    session,
};

/// Arguments of `record`.
#[derive(Debug, clap::Args)]
pub struct Record {
    #[command(flatten)]
    trees: PidTree,

    /// The file to write
    #[arg(long, short, value_name = "FILE", env = "SHMTRACE_OUTPUT")]
    output: PathBuf,

    #[command(flatten)]
    tracing: Tracing,
}

impl Record {
    /// Watches and records.
    pub fn run(self) -> anyhow::Result<Exit> {
        let mut options = self.tracing.options(self.trees.roots()?);
        options.record = Some(self.output);
        watch::watch(&self.tracing, &options)
    }
}

/// Arguments of `replay`.
#[derive(Debug, clap::Args)]
pub struct Replay {
    /// A recording
    #[arg(value_name = "FILE")]
    file: PathBuf,

    #[command(flatten)]
    tracing: Tracing,
}

impl Replay {
    /// Judges the recording.
    pub fn run(self) -> anyhow::Result<Exit> {
        let name = self.file.display();
        let file =
            File::open(&self.file).with_context(|| format!("cannot open recording {name}"))?;
        let recording = Recording::open(BufReader::new(file)).with_context(|| name.to_string())?;
        let header = &recording.header;
        let mut options = self.tracing.options(header.roots.clone());
        // The answers in the recording came when these settings asked for them.
        options.grace_ns = header.grace_ns;
        options.expect_progress_ns = header.expect_progress_ns;
        options.clock = WallClock::of_recording(&header.start_time, header.start_mono_ns)
            .with_context(|| format!("{name}: start time {:?} is no time", header.start_time))?;
        let mut report = self.tracing.report(options.clock);
        match session::replay(recording, &options, report.as_mut()) {
            Ok(verdict) => Ok(verdict.exit),
            Err(error) if exit::is_broken_pipe(&error) => Ok(Exit::Clean),
            Err(error) => Err(error.context(name.to_string())),
        }
    }
}
