//! Names of things: newtypes, so that a pid is never taken for a peer id.

use core::{cmp::Ordering, fmt};

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Mono(pub u64);

impl Mono {
    /// Nanoseconds from `earlier` to `self`, 0 if it is the other way round.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The time `ns` nanoseconds later.
    #[must_use]
    pub const fn plus(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }
}

/// A hub file (one inode).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HubId(pub u32);

/// A peer's id in its hub's peer table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PeerId(pub u16);

/// A thread id in the initial pid namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Tid(pub u32);

/// The inode number of a socket: names one end of a doorbell for as long as the machine is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SocketInode(pub u64);

/// A process: pids are reused, so the start time belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ProcId {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot, field 22 of `/proc/PID/stat`.
    pub start: u64,
}

/// Which way a lane goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Direction {
    /// Host -> peer: the peer's recv ring, rung on the host's end.
    ToPeer,
    /// Peer -> host: the peer's send ring, rung on the peer's end.
    ToHost,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ToPeer => "host->peer",
            Self::ToHost => "peer->host",
        })
    }
}

/// One direction of one peer. Lanes are ordered by their fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LaneId {
    /// The hub.
    pub hub: HubId,
    /// The peer.
    pub peer: PeerId,
    /// The direction.
    pub direction: Direction,
}

impl LaneId {
    /// All three fields in one number: lanes are looked up for every record.
    const fn number(self) -> u64 {
        (self.hub.0 as u64) << 17 | (self.peer.0 as u64) << 1 | self.direction as u64
    }
}

impl Ord for LaneId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.number().cmp(&other.number())
    }
}

impl PartialOrd for LaneId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_ordered_by_hub_then_peer_then_direction() {
        let all = [0, 1, u32::MAX].into_iter().flat_map(|hub| {
            [0, 1, u16::MAX].into_iter().flat_map(move |peer| {
                [Direction::ToPeer, Direction::ToHost].map(|direction| LaneId {
                    hub: HubId(hub),
                    peer: PeerId(peer),
                    direction,
                })
            })
        });
        assert!(all.is_sorted_by(|one, next| one < next));
    }
}
