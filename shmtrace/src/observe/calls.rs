//! Descriptors in the rings: those that are new since the last look, and those that wait.

use std::collections::{BTreeMap, BTreeSet};

use shmtrace_engine::{
    Direction, LaneId,
    input::{DescriptorObservation, Violation},
};

use crate::{
    discover::Hub,
    hub::{Descriptor, RingView},
};

const DIRECTIONS: [Direction; 2] = [Direction::ToPeer, Direction::ToHost];

/// What of a hub was reported before.
#[derive(Debug, Default)]
pub(super) struct CallsSeen {
    lanes: BTreeMap<LaneId, LaneSeen>,
}

#[derive(Debug, Default)]
struct LaneSeen {
    /// First index that was not reported.
    next: u64,
    /// Indexes at the last look.
    head: u64,
    tail: u64,
    /// The descriptors that waited at the last look, by index.
    waiting: BTreeMap<u64, Descriptor>,
}

/// What the rings of a hub hold.
#[derive(Debug, Default)]
pub(super) struct Calls {
    pub(super) descriptors: Vec<DescriptorObservation>,
    pub(super) violations: Vec<Violation>,
    /// Class, index and generation of the slots that waiting descriptors refer to.
    pub(super) referred: BTreeSet<(u8, u32, u32)>,
}

impl CallsSeen {
    /// Reads all rings of used entries.
    pub(super) fn look(&mut self, hub: &Hub) -> Calls {
        let mut calls = Calls::default();
        for entry in hub.entries() {
            for direction in DIRECTIONS {
                let lane = LaneId {
                    hub: hub.id(),
                    peer: entry.id,
                    direction,
                };
                self.lanes
                    .entry(lane)
                    .or_default()
                    .look(hub, lane, &mut calls);
            }
        }
        self.lanes
            .retain(|lane, _| hub.entries().iter().any(|entry| entry.id == lane.peer));
        calls
    }
}

impl LaneSeen {
    fn look(&mut self, hub: &Hub, lane: LaneId, calls: &mut Calls) {
        let reader = hub.reader();
        let capacity = u64::from(reader.geometry().ring_capacity);
        let read = || reader.glance().ring(lane.peer, lane.direction);
        let Some(ring) = read() else { return };
        let violated = |what: String| Violation {
            lane: Some(lane),
            what,
        };
        if let Some(what) = broken(&ring, capacity) {
            // A pair that was torn by traffic is not there any more at a second look.
            if read().is_some_and(|again| again.indexes == ring.indexes) {
                calls.violations.push(violated(what));
            }
            // What was there before is too old to be compared with the next look.
            (self.head, self.tail) = (0, 0);
            self.waiting.clear();
            return;
        }
        let (head, tail) = (ring.indexes.head, ring.indexes.tail);
        if head < self.tail {
            // It fell to where a new plugin's ring begins. Samples tell in time whether it is one.
            *self = Self::default();
        }
        for (name, old, new) in [("head", self.head, head), ("tail", self.tail, tail)] {
            if new < old {
                calls
                    .violations
                    .push(violated(format!("{name} moved back from {old} to {new}")));
                self.next = 0;
                self.waiting.clear();
            }
        }
        let from = self.next.min(tail).max(head.saturating_sub(capacity));
        let descriptors = reader.descriptors(lane.peer, lane.direction, from, head);
        // What was overwritten while it was read is left out: its successor comes at the next look.
        let after = read().map_or(ring.indexes, |after| after.indexes);
        let valid = after.head.saturating_sub(capacity);
        let mut waiting = BTreeMap::new();
        for (index, descriptor) in descriptors.into_iter().filter(|(index, _)| *index >= valid) {
            let waits = index >= after.tail;
            calls
                .descriptors
                .push(observation(lane, index, waits, &descriptor));
            if !waits {
                continue;
            }
            if self
                .waiting
                .get(&index)
                .is_some_and(|before| *before != descriptor)
            {
                calls.violations.push(violated(format!(
                    "entry {index} was overwritten while it waited"
                )));
            }
            calls.referred.extend(
                descriptor
                    .slot()
                    .map(|(class, slot)| (class, slot, descriptor.payload_generation)),
            );
            waiting.insert(index, descriptor);
        }
        *self = Self {
            next: head,
            head,
            tail,
            waiting,
        };
    }
}

/// What no honest pair of indexes looks like.
fn broken(ring: &RingView, capacity: u64) -> Option<String> {
    let (head, tail) = (ring.indexes.head, ring.indexes.tail);
    if tail > head {
        Some(format!("tail {tail} is beyond head {head}"))
    } else if head - tail > capacity {
        Some(format!(
            "{} entries wait in a ring of {capacity} (head {head}, tail {tail})",
            head - tail
        ))
    } else if u64::from(ring.capacity) != capacity {
        Some(format!(
            "the ring's header says capacity {}, the hub's {capacity}",
            ring.capacity
        ))
    } else {
        None
    }
}

fn observation(
    lane: LaneId,
    index: u64,
    waiting: bool,
    descriptor: &Descriptor,
) -> DescriptorObservation {
    DescriptorObservation {
        lane,
        index,
        waiting,
        msg_id: descriptor.msg_id,
        channel: descriptor.channel,
        method: descriptor.method,
        flags: descriptor.flags,
    }
}
