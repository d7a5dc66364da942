//! What a hub as a whole shows: dead peers, broken rings, slots that nobody frees, and quiet where progress is expected.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    calls::{Calls, Message},
    finding::Code,
    ids::{Mono, PeerId},
    input::{HubObservation, SlotObservation},
};

use crate::condition::Key;

/// Flag bits of a peer entry (`hub-format`): attached; seen dead by the host.
const ACTIVE: u32 = 1;
pub(crate) const DEAD: u32 = 1 << 2;

/// How often a hub is observed as a whole, ns.
pub(crate) const LOOK: u64 = 250_000_000;
/// How often while nothing moves in it, ns: a look reads every slot and every thread.
pub(crate) const LOOK_IDLE: u64 = 2_000_000_000;
/// A state that has lasted is looked at once more after this, ns: two looks, no accident of one.
pub(crate) const AGAIN: u64 = 10_000_000;
/// How long the entry of a dead process may stay active, ns: a host on a loaded machine needs time to reap its child.
const DEAD_LASTS: u64 = 400_000_000;
/// How long a slot in flight to which nothing refers must stay as it is, while everybody sleeps, ns. A plugin may well hold
/// a message while it works on it, but then it runs, or the rings move.
const SLOT_LASTS: u64 = 2_000_000_000;

/// A hub, as far as it has been observed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hub {
    pub(crate) asked_at: Option<Mono>,
    pub(crate) look_at: Mono,
    /// The last look.
    pub(crate) looked_at: Mono,
    /// Since when each orphaned slot has been one, with nothing moving in the hub.
    orphans: BTreeMap<SlotObservation, Mono>,
    /// A size class has no free slot, and everybody sleeps.
    exhausted: bool,
    calls: BTreeMap<PeerId, Calls>,
}

/// A state that an observation shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) key: Key,
    /// How often it must be seen.
    pub(crate) looks: u32,
    /// How long it must last, ns.
    pub(crate) grace: u64,
    pub(crate) explanation: String,
}

impl Hub {
    /// The states that an observation shows. `last_move` is when anything in the hub's rings last moved.
    pub(crate) fn shown(
        &mut self,
        seen: &HubObservation,
        grace: u64,
        last_move: Mono,
    ) -> Vec<Shown> {
        self.calls(seen);
        let mut shown = dead_peers(seen, grace);
        shown.extend(broken(seen));
        shown.extend(self.stuck_slots(seen, last_move));
        shown
    }

    fn calls(&mut self, seen: &HubObservation) {
        for call in &seen.calls {
            self.calls.entry(call.lane.peer).or_default().saw(call);
        }
        self.calls
            .retain(|peer, _| seen.peers.iter().any(|entry| entry.peer == *peer));
    }

    /// A message to a peer that is not answered.
    pub(crate) fn unanswered(&self) -> Option<(PeerId, Message)> {
        self.calls
            .iter()
            .find_map(|(peer, calls)| Some((*peer, calls.open()?)))
    }

    /// Whether the descriptors tell which calls of a peer are open.
    pub(crate) fn tells(&self, peer: PeerId) -> bool {
        self.calls.get(&peer).is_some_and(Calls::tell)
    }

    /// Whether a call to a peer is known to be open.
    pub(crate) fn owes(&self, peer: PeerId) -> bool {
        let calls = self.calls.get(&peer);
        calls.is_some_and(|calls| calls.tell() && calls.open().is_some())
    }

    /// The times at which what was seen may have lasted long enough to be a finding.
    pub(crate) fn due(&self, last_move: Mono) -> impl Iterator<Item = Mono> {
        let exhausted = self.exhausted.then_some(last_move);
        let orphaned = self.orphans.values().copied();
        orphaned
            .chain(exhausted)
            .map(move |since| since.max(last_move).plus(SLOT_LASTS))
    }

    /// Something is being watched that may become a finding if it lasts.
    pub(crate) fn is_watched(&self) -> bool {
        !self.orphans.is_empty() || self.exhausted
    }

    fn stuck_slots(&mut self, seen: &HubObservation, last_move: Mono) -> Vec<Shown> {
        let asleep = seen.all_asleep == Some(true);
        if !asleep {
            self.orphans.clear();
        }
        let now: BTreeSet<SlotObservation> = if asleep {
            seen.orphans.iter().copied().collect()
        } else {
            BTreeSet::new()
        };
        self.orphans.retain(|slot, _| now.contains(slot));
        for slot in now {
            self.orphans.entry(slot).or_insert(seen.at);
        }
        let lasting = self
            .orphans
            .values()
            .filter(|since| seen.at.since((**since).max(last_move)) >= SLOT_LASTS)
            .count();
        let empty = seen
            .classes
            .iter()
            .enumerate()
            .find(|(_, class)| class.total > 0 && class.free == 0);
        let empty = empty.filter(|_| asleep);
        self.exhausted = empty.is_some();
        let key = Key {
            code: Code::SlotsStuck,
            hub: Some(seen.hub),
            peer: None,
            lane: None,
        };
        let exhausted = empty.filter(|_| seen.at.since(last_move) >= SLOT_LASTS);
        if lasting == 0 && exhausted.is_none() {
            return Vec::new();
        }
        let class = exhausted.map_or(String::new(), |(number, class)| {
            format!(
                " Size class {number} ({} bytes) has no free slot left of {}.",
                class.slot_size, class.total
            )
        });
        let owners: BTreeSet<u32> = self.orphans.keys().map(|slot| slot.owner).collect();
        let owners: Vec<String> = owners.into_iter().map(|owner| owner.to_string()).collect();
        let explanation = format!(
            "{lasting} slots are in flight, no ring entry refers to them, and everybody sleeps (allocated by: {}).{class} Look for a \
             receiver that drops a message without freeing its slot.",
            owners.join(", ")
        );
        vec![Shown {
            key,
            looks: 2,
            grace: 0,
            explanation,
        }]
    }
}

/// Peers whose process is gone while the entry still says that they are there.
fn dead_peers(seen: &HubObservation, grace: u64) -> Vec<Shown> {
    seen.peers
        .iter()
        .filter(|entry| entry.alive == Some(false) && entry.flags & ACTIVE != 0 && entry.flags & DEAD == 0)
        .map(|entry| Shown {
            key: Key { code: Code::PeerDied, hub: Some(seen.hub), peer: Some(entry.peer), lane: None },
            looks: 2,
            grace: grace.max(DEAD_LASTS),
            explanation: format!(
                "The process of peer {} is gone, but its entry is still active: the host has not noticed, since a dead peer's doorbell \
                 gives no end of file. Whoever waits for an answer from it waits for nobody; look at how the host watches its children.",
                entry.peer.0
            ),
        })
        .collect()
}

/// What the rules of the format do not allow.
fn broken(seen: &HubObservation) -> Vec<Shown> {
    seen.violations
        .iter()
        .map(|violation| Shown {
            key: Key {
                code: Code::RingCorrupt,
                hub: Some(seen.hub),
                peer: violation.lane.map(|lane| lane.peer),
                lane: violation.lane,
            },
            // The observer has read twice already, and a head that moved back is seen once only.
            looks: 1,
            grace: 0,
            explanation: format!(
                "{}. Look for two producers on one ring (two tasks that enqueue without a lock), and for writes beyond a slot.",
                violation.what
            ),
        })
        .collect()
}
