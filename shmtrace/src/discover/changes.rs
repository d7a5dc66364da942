//! What discovery is told, and what it tells.

use shmtrace_engine::{HubId, PeerId, SocketInode, input::Topology};

use crate::bounds::Bound;

/// Something happened to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// It was started.
    Forked {
        /// Its pid.
        child: u32,
    },
    /// It executes another program.
    Execed {
        /// Its pid.
        pid: u32,
    },
    /// It made a shared mapping of a file.
    Mapped {
        /// Its pid.
        pid: u32,
    },
    /// It ended.
    Exited {
        /// Its pid.
        pid: u32,
    },
    /// It left a record: what is known of it may be out of date soon.
    Stirred {
        /// Its pid.
        pid: u32,
    },
    /// Hints were lost: examine everything.
    Lost,
}

/// What is new.
#[derive(Debug, Default)]
pub struct Changes {
    /// For the engine.
    pub topology: Vec<Topology>,
    /// For the probes' tables.
    pub probes: Vec<ProbeUpdate>,
    /// For people: hubs that were refused, blind spots. Each is said once.
    pub notes: Vec<String>,
    /// Bounds that were reached, each kind once.
    pub bounds: Vec<Bound>,
    /// A hub was refused because this program does not speak its version.
    pub unsupported: bool,
}

impl Changes {
    /// All that is for people.
    pub fn in_words(&self) -> impl Iterator<Item = String> + '_ {
        let bounds = self.bounds.iter().map(Bound::to_string);
        self.notes.iter().cloned().chain(bounds)
    }
}

/// A change of the probes' tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeUpdate {
    /// What is known of a process; replaces what was known before.
    Process {
        /// Its pid.
        pid: u32,
        /// It maps a hub.
        participant: bool,
        /// Where it maps hubs.
        mappings: Vec<Mapping>,
    },
    /// A socket is one end of a peer's doorbell. With peer [`NO_PEER`] it is some peer's of this hub, it is not known
    /// whose, and the rings are those of a candidate.
    Doorbell {
        /// The socket.
        socket: SocketInode,
        /// The hub.
        hub: HubId,
        /// The peer.
        peer: PeerId,
        /// Whose end it is.
        side: Side,
        /// File offset of the ring host -> peer.
        to_peer: u64,
        /// File offset of the ring peer -> host.
        to_host: u64,
    },
    /// A socket of a participant is no doorbell.
    Ignore {
        /// The socket.
        socket: SocketInode,
    },
    /// A socket is gone, or nothing is known of it any more.
    Forget {
        /// The socket.
        socket: SocketInode,
    },
}

/// The peer of a doorbell whose peer is not known.
pub const NO_PEER: PeerId = PeerId(shmtrace_common::NO_PEER);

/// Where a process maps the rings of a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// The hub.
    pub hub: HubId,
    /// Address at which file offset 0 is, or would be if it were mapped along with the rings.
    pub base: u64,
    /// Bytes from there to the end of the mapping.
    pub len: u64,
}

/// An end of a doorbell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The host's.
    Host,
    /// The plugin's.
    Plugin,
}
