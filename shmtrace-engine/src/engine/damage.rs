//! Rings whose indexes moved back: broken, or another plugin's.

use super::{Engine, Peer, whole::SETTLED};
use crate::{
    Code, HubId, Mono, PeerId,
    condition::Key,
    history::SKEW,
    input::{Indexes, Sample},
    lane::Lane,
};

/// A ring without a sample for this long has not moved, ns.
const STILL: u64 = 50_000_000;
/// A plugin's end is known by so long after its ring began anew, ns.
const FALLEN_WAIT: u64 = 1_000_000_000;

impl Lane {
    /// A head that a producer saw and that a later look does not reach moved back in between. A record's indexes are read
    /// some time after its time was taken, so only a look after the record came in, which is `now`, is later for sure.
    pub(super) fn seen_before(&mut self, peer: &Peer, now: Mono, at: Mono, then: Indexes) {
        // One of before the plugin's own beginning may be of another ring.
        let since = match peer.begun {
            Some(begun) => begun.at.plus(SKEW),
            None => peer.bound_at.plus(SETTLED),
        };
        if at >= since && self.ring.is_some_and(|ring| then.head > ring.head) {
            self.doubt.get_or_insert((now, then));
        }
    }
}

impl Engine {
    /// A look that is later than a doubtful record decides.
    pub(super) fn settle_doubt(&mut self, sample: &Sample) {
        if let Some(lane) = self.lanes.get_mut(&sample.lane)
            && let Some((_, then)) = lane.doubt.take_if(|(since, _)| sample.at > *since)
            && then.head > sample.ring.head
        {
            self.moved_back(sample, then);
        }
    }

    /// Rings that stand still are not sampled: they are as they were.
    pub(super) fn settle_doubts(&mut self) {
        let now = self.now;
        let still = self.lanes.iter().filter_map(|(id, lane)| {
            let (since, _) = lane.doubt?;
            (now.since(since) >= STILL).then_some(Sample {
                at: now,
                lane: *id,
                ring: lane.ring?,
                capacity: lane.capacity,
            })
        });
        for sample in still.collect::<Vec<_>>() {
            self.settle_doubt(&sample);
        }
    }

    /// Whether the rings of a peer may have begun anew for its plugin between the look before, at `before`, and `at`.
    pub(super) fn may_begin(&self, hub: HubId, peer: PeerId, before: Mono, at: Mono) -> bool {
        let Some(peer) = self.peers.get(&(hub, peer)) else {
            return false;
        };
        // A reader that was held up samples the ring and learns of the beginning at the same time.
        let begun_before = peer.begun.is_some_and(|begun| before > begun.known);
        peer.vacant.is_some() || !begun_before && at.since(peer.bound_at) < SETTLED
    }

    /// Indexes only ever grow. A ring that starts anew belongs to a plugin that starts anew.
    pub(super) fn moved_back(&mut self, sample: &Sample, before: Indexes) {
        if sample.ring.head < before.tail {
            self.fallen.push((*sample, before));
        } else {
            self.broke(sample, before);
        }
    }

    /// A ring that fell to its beginning is broken, unless it turned out to be another plugin's.
    pub(super) fn settle_fallen(&mut self) {
        let now = self.now;
        let (ready, waiting) = std::mem::take(&mut self.fallen)
            .into_iter()
            .partition(|(sample, _)| now.since(sample.at) >= FALLEN_WAIT);
        self.fallen = waiting;
        for (sample, before) in ready {
            let peer = self.peers.get(&(sample.lane.hub, sample.lane.peer));
            // Of a plugin that nobody knows the end is not known either.
            if peer.is_some_and(|peer| peer.binding.plugin.is_some() && peer.bound_at < sample.at) {
                self.broke(&sample, before);
            }
        }
    }

    fn broke(&mut self, sample: &Sample, before: Indexes) {
        let (name, old, new) = if sample.ring.head < before.head {
            ("visible_head", before.head, sample.ring.head)
        } else if sample.ring.tail < before.tail {
            ("tail", before.tail, sample.ring.tail)
        } else {
            return;
        };
        let id = sample.lane;
        let bound = self.peers.contains_key(&(id.hub, id.peer));
        if !bound || self.may_begin(id.hub, id.peer, sample.at, sample.at) {
            return;
        }
        let key = Key {
            code: Code::RingCorrupt,
            hub: Some(id.hub),
            peer: Some(id.peer),
            lane: Some(id),
        };
        let explanation = format!(
            "{name} moved back from {old} to {new}. Look for two producers on one ring (two tasks that enqueue without a lock)."
        );
        self.holds(key, 1, 0, explanation, Vec::new());
    }
}
