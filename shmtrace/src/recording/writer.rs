//! Writing a recording.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use anyhow::Context as _;

use super::{Header, Step};
use crate::output;

/// Writes a recording to a file.
pub struct Recorder {
    out: BufWriter<File>,
}

impl Recorder {
    /// Creates (or truncates) the file. It belongs to the user who called sudo, if that is how root came about.
    pub fn create(path: &Path, header: &Header) -> anyhow::Result<Self> {
        let file = output::create(path)
            .with_context(|| format!("cannot create recording {}", path.display()))?;
        Self::new(file, header).with_context(|| format!("cannot write to {}", path.display()))
    }

    /// Writes to this file.
    pub fn new(file: File, header: &Header) -> io::Result<Self> {
        let mut recorder = Self {
            out: BufWriter::with_capacity(1 << 16, file),
        };
        recorder.line(header)?;
        recorder.flush()?;
        Ok(recorder)
    }

    /// Adds a step.
    pub fn step(&mut self, step: &Step) -> io::Result<()> {
        self.line(step)
    }

    /// Hands everything to the system, so that it survives this process.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn line(&mut self, value: &impl serde::Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, value)?;
        self.out.write_all(b"\n")
    }
}
