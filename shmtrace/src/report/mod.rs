//! What a person and a script see of a watch.

mod clock;
mod json;
mod status;
mod syscalls;
mod text;

use std::io::{self, Write as _};

use shmtrace_engine::{Finding, Mono, input::Event};

use crate::session::{Directory, Totals};

pub use clock::WallClock;
pub use json::{Json, write_json};
pub use status::{Page, StatusLine};
pub use syscalls::{errno_name, syscall_name};
pub use text::{Text, printable};

/// Version of the NDJSON format: raised when a field is renamed or removed.
pub const SCHEMA: u32 = 1;

/// What is known when a watch starts.
#[derive(Debug, Clone)]
pub struct Header {
    /// Roots of the trees.
    pub roots: Vec<u32>,
    /// Release of the running kernel, as `uname -r` prints it.
    pub kernel: String,
    /// Grace, in ns.
    pub grace_ns: u64,
    /// What this kernel or these rights do not offer, in words.
    pub limits: Vec<String>,
}

/// Where a watch's results go.
pub trait Report {
    /// Once, at the start.
    fn header(&mut self, header: &Header) -> io::Result<()>;
    /// A finding began or changed its state.
    fn finding(&mut self, finding: &Finding, names: &Directory) -> io::Result<()>;
    /// A doorbell event (only with `--events`).
    fn event(&mut self, event: &Event, names: &Directory) -> io::Result<()>;
    /// Once, at the end.
    fn summary(&mut self, totals: &Totals, names: &Directory) -> io::Result<()>;
    /// Something that cannot be seen or was refused: for stderr, and in the summary again.
    fn note(&mut self, note: &str) -> io::Result<()> {
        writeln!(anstream::stderr(), "shmtrace: {}", printable(note))
    }
    /// The canary's lost wakeup was not found (`blind`), or is found again.
    fn canary(&mut self, _at: Mono, _blind: bool, words: &str) -> io::Result<()> {
        self.note(words)
    }
    /// No more signs of life: the terminal is somebody else's, and nothing may be drawn over what that prints.
    fn leave_terminal(&mut self) {}
    /// A short sign of life, from time to time.
    fn alive(&mut self, totals: &Totals, names: &Directory) -> io::Result<()>;
}
