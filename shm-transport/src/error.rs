//! What can go wrong.

use std::io;
use std::path::PathBuf;

use crate::ring::Broken;

/// A hub file that cannot be created, opened or believed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The file cannot be used.
    #[error("cannot {action} hub {path}: {source}", path = .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is no hub.
    #[error("not a hub: it does not start with RAPAHUB")]
    Magic,
    /// A hub of another major version.
    #[error("hub version {}.{} is not supported: this transport speaks version 1", .0 >> 16, .0 & 0xffff)]
    Version(u32),
    /// A number in the hub's header, or asked for, that cannot be.
    #[error("{field} is {value}, which no hub has: {rule}")]
    Value {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What would be right.
        rule: &'static str,
    },
    /// The file ends before a part that its header promises.
    #[error("{part} at {offset} with {size} bytes is not within the hub file of {file} bytes")]
    Outside {
        /// The part.
        part: &'static str,
        /// Where it should be.
        offset: u64,
        /// Its size.
        size: u64,
        /// The file's size.
        file: u64,
    },
    /// All peer ids are in use.
    #[error("all {0} peers of the hub are in use: remove one that has ended")]
    TooManyPeers(u16),
    /// A peer id that the hub has no entry for.
    #[error("peer {id} is not one of the hub's {max} peers")]
    NoSuchPeer {
        /// The id.
        id: u16,
        /// Peers that the hub has.
        max: u16,
    },
    /// The peer still runs.
    #[error("peer {0} is in use: mark it dead first")]
    PeerInUse(u16),
    /// A doorbell cannot be made or taken over.
    #[error("cannot {action} doorbell: {source}")]
    Doorbell {
        /// What was tried.
        action: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The other process cannot be watched.
    #[error("cannot watch process {pid}: {source}")]
    Watch {
        /// The process.
        pid: u32,
        /// What the system says.
        source: io::Error,
    },
}

/// Why a payload slot cannot be had or used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SlotError {
    /// No class that is large enough has a free slot.
    #[error("no free slot for {0} bytes: wait until the other side has taken messages")]
    Exhausted(usize),
    /// No slot is that large.
    #[error("payload of {len} bytes is larger than the largest slot, {max} bytes: split it")]
    TooLarge {
        /// Bytes of payload.
        len: usize,
        /// Bytes of the largest slot.
        max: usize,
    },
    /// There is no such slot.
    #[error("slot {index} of class {class} does not exist")]
    NoSuchSlot {
        /// The size class.
        class: u32,
        /// The global index.
        index: u32,
    },
    /// The slot has been reused since.
    #[error(
        "slot {index} of class {class} has generation {found}, not {expected}: it was freed meanwhile"
    )]
    Stale {
        /// The size class.
        class: u32,
        /// The global index.
        index: u32,
        /// The generation that was expected.
        expected: u32,
        /// The one found.
        found: u32,
    },
    /// The slot is not in the state that the step needs.
    #[error("slot {index} of class {class} is in state {found}, not {expected}")]
    State {
        /// The size class.
        class: u32,
        /// The global index.
        index: u32,
        /// The state that was expected.
        expected: u32,
        /// The one found.
        found: u32,
    },
    /// The payload would reach beyond its slot.
    #[error("payload at {offset} with {len} bytes does not fit into a slot of {size} bytes")]
    Range {
        /// Bytes from the slot's start.
        offset: u32,
        /// Bytes of payload.
        len: u32,
        /// Bytes of the slot.
        size: u32,
    },
}

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The peer was marked dead, or its process has ended.
    #[error("peer {0} has ended")]
    PeerGone(u16),
    /// The host's process has ended.
    #[error("the host has ended")]
    HostGone,
    /// The ring's indexes are not ours any more.
    #[error("ring is corrupt: {0}; both sides must be restarted")]
    RingCorrupt(RingFault),
    /// No slot, or a descriptor that refers to none.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// A descriptor whose inline payload is longer than a descriptor.
    #[error("inline payload of {0} bytes is longer than 16")]
    InlineLength(u32),
    /// The doorbell failed.
    #[error("doorbell failed: {0}")]
    Doorbell(#[from] io::Error),
}

/// What is wrong with a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingFault {
    /// Another producer or consumer moved an index that is ours alone.
    #[error("our index is {ours}, the ring's is {found}, so a second process or task moved it")]
    Moved {
        /// What we know.
        ours: u64,
        /// What the ring says.
        found: u64,
    },
    /// The indexes enclose less than nothing or more than fits.
    #[error("head {head} and tail {tail} are impossible together")]
    Length {
        /// The head.
        head: u64,
        /// The tail.
        tail: u64,
    },
}

impl From<Broken> for TransportError {
    fn from(broken: Broken) -> Self {
        Self::RingCorrupt(match broken {
            Broken::Moved { ours, found } => RingFault::Moved { ours, found },
            Broken::Length { head, tail } => RingFault::Length { head, tail },
        })
    }
}
