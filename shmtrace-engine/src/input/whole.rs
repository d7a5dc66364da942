//! What is observed of hubs as a whole, and of memory limits.

use crate::ids::{HubId, LaneId, Mono, PeerId};

/// A hub as a whole: slots, entries waiting, peers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HubObservation {
    /// Which hub.
    pub hub: HubId,
    /// When.
    pub at: Mono,
    /// The slots, by class.
    pub classes: Vec<ClassObservation>,
    /// Slots in flight to which no waiting descriptor refers.
    pub orphans: Vec<SlotObservation>,
    /// Descriptors newly seen since the last observation, in ring order, and those that wait now.
    pub calls: Vec<DescriptorObservation>,
    /// Peer entries that are not free.
    pub peers: Vec<PeerEntryObservation>,
    /// What does not hold together, in words (see `ring-corrupt`).
    pub violations: Vec<Violation>,
    /// Every thread of every process that maps the hub is asleep; `None` if that could not be seen or was not looked at, since no
    /// slot is in doubt.
    pub all_asleep: Option<bool>,
}

/// Slots of one size class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ClassObservation {
    /// Bytes of a slot.
    pub slot_size: u32,
    /// Slots in all.
    pub total: u32,
    /// Free.
    pub free: u32,
    /// Allocated, being filled.
    pub allocated: u32,
    /// In flight.
    pub in_flight: u32,
}

/// One slot that is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SlotObservation {
    /// Size class.
    pub class: u8,
    /// Global index within the class.
    pub index: u32,
    /// Its generation: the same slot with another generation is another message.
    pub generation: u32,
    /// Peer that allocated it, `u32::MAX` = nobody.
    pub owner: u32,
}

/// A descriptor in a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DescriptorObservation {
    /// Which lane.
    pub lane: LaneId,
    /// Its index (not slot) in the ring.
    pub index: u64,
    /// It was still waiting when read; otherwise it was consumed already.
    pub waiting: bool,
    /// Message id.
    pub msg_id: u64,
    /// Channel id.
    pub channel: u32,
    /// Method id.
    pub method: u32,
    /// Flags, see `shm_transport::layout::desc`.
    pub flags: u32,
}

/// An entry of the peer table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PeerEntryObservation {
    /// Peer.
    pub peer: PeerId,
    /// Flags word.
    pub flags: u32,
    /// Nanoseconds since the Unix epoch of its last heartbeat, 0 = never.
    pub last_seen: u64,
    /// Whether its process lives; `None` if not known.
    pub alive: Option<bool>,
}

/// Something in a hub that its rules do not allow.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Violation {
    /// The lane it concerns, if one.
    pub lane: Option<LaneId>,
    /// What, in words.
    pub what: String,
}

/// Memory limit of the tree's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MemoryObservation {
    /// When.
    pub at: Mono,
    /// The cgroup, for people.
    pub cgroup: String,
    /// Bytes in use.
    pub current: u64,
    /// Limit in bytes; `None` = no limit.
    pub max: Option<u64>,
    /// OOM kills so far.
    pub oom_kills: u64,
    /// Times the limit was hit so far.
    pub limit_hits: u64,
}
