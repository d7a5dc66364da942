//! Recordings: everything the engine was told, in order, so that it can be told again.
//!
//! JSON lines. The first is a [`Header`]; each further line is a [`Step`]: an input, or an advance of the time. The same
//! steps give the same findings, whoever takes them, so a recording is a bug report, a test and an archive at once. A
//! line is complete or the last of the file: a recorder that was killed leaves all but the line it was writing.

mod background;
mod flight;
mod reader;
mod writer;

use serde::{Deserialize, Serialize};
use shmtrace_engine::{Mono, input::Input};

use crate::session::Options;

pub use flight::FlightRecorder;
pub use reader::{ReadError, Recording};
pub use writer::Recorder;

/// Version of the format: raised when an old reader would misunderstand a new file.
pub const FORMAT: u32 = 1;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Says what the file is: [`MAGIC`].
    pub recording: String,
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the shmtrace that wrote it.
    pub version: String,
    /// Wall time of `start_mono_ns`, RFC 3339.
    pub start_time: String,
    /// `CLOCK_MONOTONIC` at the start, ns.
    pub start_mono_ns: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// Roots of the trees.
    pub roots: Vec<u32>,
    /// Grace, ns.
    pub grace_ns: u64,
    /// `--expect-progress`, ns.
    pub expect_progress_ns: Option<u64>,
}

impl Header {
    /// The header of a watch.
    pub fn of_watch(options: &Options, kernel: &str) -> Self {
        Self {
            recording: MAGIC.to_owned(),
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            start_time: options.clock.start_time(),
            start_mono_ns: options.clock.origin().0,
            kernel: kernel.to_owned(),
            roots: options.roots.clone(),
            grace_ns: options.grace_ns,
            expect_progress_ns: options.expect_progress_ns,
        }
    }
}

/// What [`Header::recording`] says.
pub const MAGIC: &str = "shmtrace";

/// One step of the engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Tracing began.
    Attached(Mono),
    /// It was told something.
    Input(Input),
    /// It was told the time.
    Advance {
        /// The time.
        now: Mono,
        /// Events up to here were all handed in.
        complete_until: Mono,
    },
}
