//! Why a file is not read as a hub.

use std::io;

use thiserror::Error;

/// A file that was not accepted as a hub.
#[derive(Debug, Error)]
#[error("hub {path}: {problem}")]
pub struct HubError {
    /// The file, for people.
    pub path: String,
    /// What is wrong with it; part of the message, so no source of its own.
    pub problem: HubProblem,
}

/// What is wrong with a hub file.
#[derive(Debug, Error)]
pub enum HubProblem {
    /// It cannot be opened, read or mapped.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// A FIFO, device, folder, socket, or a file on a file system that a process serves.
    #[error("is no regular file on a local file system, so it cannot be a hub")]
    NotRegular,
    /// Shorter than a header.
    #[error(
        "is {size} bytes long, shorter than a hub's header of 256 bytes: it was cut short, or is just being made"
    )]
    TooShort {
        /// Bytes of the file.
        size: u64,
    },
    /// Another kind of file.
    #[error(
        "is no hub: it does not begin with RAPAHUB; give the hub file, usually /tmp/dodeca-hub-PID.shm"
    )]
    NoMagic,
    /// Another major version.
    #[error(
        "has format version {major}.{minor}, and this shmtrace reads 1.x: use a shmtrace that is as old as the program"
    )]
    Version {
        /// Major version.
        major: u16,
        /// Minor version.
        minor: u16,
    },
    /// A header field that no program writes.
    #[error(
        "has {field} {value} in its header, which cannot be ({allowed}): it is damaged, or not written by a hub's host"
    )]
    Absurd {
        /// The field.
        field: &'static str,
        /// What it says.
        value: u64,
        /// What it may say.
        allowed: &'static str,
    },
    /// It ends within a part that its header promises.
    #[error("is cut short: its {part} end at byte {needed}, the file at byte {size}")]
    Truncated {
        /// The part.
        part: &'static str,
        /// Where that part ends.
        needed: u64,
        /// Bytes of the file.
        size: u64,
    },
    /// The path leads to another file than the one that the process maps.
    #[error(
        "was replaced: the path leads to another file than the one that is mapped, which only CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE may open"
    )]
    Replaced,
    /// The table of guarded mappings is full.
    #[error("is one hub too many: at most {limit} are read at once")]
    TooMany {
        /// How many.
        limit: usize,
    },
}

impl HubProblem {
    /// It may become a hub a moment later: hosts map the file before they write its header.
    pub fn may_pass(&self) -> bool {
        !matches!(self, Self::Version { .. } | Self::NotRegular)
    }
}
