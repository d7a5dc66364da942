//! Taking inputs: topology, events in the order of their times, losses, samples.

use super::{Begun, End, Engine, Healed, Peer, Vacancy, findings::woken_by};
use crate::{
    Direction, HubId, LaneId, Mono, ProcId, State,
    condition::Key,
    finding::Code,
    history::{Ring, SKEW, Take},
    hubs,
    input::{Event, EventKind, Indexes, Loss, PeerBinding, PeerRings, Sample, Topology},
};

/// A lane that stands still for this long is looked at, ns: longer than any healthy producer needs from publish to ring
/// unless it is off the CPU, which a look shows.
const STANDSTILL: u64 = 5_000_000;
/// Events waiting to be sorted at most.
const MOST_PENDING: usize = 1 << 20;

impl Engine {
    pub(super) fn topology(&mut self, topology: Topology) {
        match topology {
            Topology::Peer(binding) => self.bind(binding),
            Topology::ProcessExited { proc, at } => self.exited(proc, at),
            Topology::HubGone { hub } => {
                let lanes: Vec<LaneId> = self
                    .lanes
                    .keys()
                    .filter(|lane| lane.hub == hub)
                    .copied()
                    .collect();
                for lane in lanes {
                    self.end(lane, "no process maps the hub any more");
                    self.lanes.remove(&lane);
                }
                self.hubs.remove(&hub);
                self.conclude(
                    |key| key.hub == Some(hub),
                    State::Ended,
                    "no process maps the hub any more",
                );
                self.peers.retain(|(of, _), _| *of != hub);
                self.ends.retain(|_, end| end.rings.hub != hub);
            }
            Topology::Hub { hub, .. } => drop(self.hubs.entry(hub).or_default()),
            Topology::Process { .. } => {}
        }
    }

    pub(super) fn bind(&mut self, binding: PeerBinding) {
        let lane = |direction| LaneId {
            hub: binding.hub,
            peer: binding.peer,
            direction,
        };
        let (to_peer, to_host) = (lane(Direction::ToPeer), lane(Direction::ToHost));
        let previous = self.peers.get(&(binding.hub, binding.peer));
        let parts = |of: &PeerBinding| (of.plugin, of.host, of.host_end, of.plugin_end);
        let changed = previous.is_none_or(|before| parts(&before.binding) != parts(&binding));
        let vacant = previous.and_then(|before| before.vacant);
        let vacant = match (
            previous.and_then(|before| before.binding.plugin),
            binding.plugin,
        ) {
            (before, Some(now)) if before != Some(now) => None,
            (Some(_), None) => vacant.or(Some(Vacancy::Parted)),
            _ => vacant,
        };
        let now = self.now.max(self.attached);
        let settled = previous.filter(|_| !changed);
        let begun = settled.and_then(|peer| peer.begun);
        let bound_at = settled.map_or(now, |peer| peer.bound_at);
        if changed {
            self.ends
                .retain(|_, end| end.rings != to_peer && end.rings != to_host);
            if let Some(end) = binding.host_end {
                self.ends.insert(
                    end,
                    End {
                        rings: to_peer,
                        takes: to_host,
                    },
                );
            }
            if let Some(end) = binding.plugin_end {
                self.ends.insert(
                    end,
                    End {
                        rings: to_host,
                        takes: to_peer,
                    },
                );
            }
            for (id, rung_on, taken_from) in [
                (to_peer, binding.host_end, binding.plugin_end),
                (to_host, binding.plugin_end, binding.host_end),
            ] {
                let lane = self.lanes.entry(id).or_default();
                lane.rung_on = rung_on;
                lane.taken_from = taken_from;
                // Records from before the sockets were known may be missing.
                lane.history.incomplete_until(now);
            }
        }
        let key = (binding.hub, binding.peer);
        let peer = Peer {
            binding,
            bound_at,
            begun,
            vacant,
        };
        self.peers.insert(key, peer);
    }

    pub(super) fn exited(&mut self, proc: ProcId, at: Mono) {
        self.now = self.now.max(at);
        self.servers.ended(proc);
        let mut concerned = Vec::new();
        for (key, peer) in &mut self.peers {
            let is_plugin = peer.binding.plugin == Some(proc);
            if is_plugin {
                peer.vacant = Some(Vacancy::Ended);
            }
            if is_plugin || peer.binding.host == Some(proc) {
                concerned.push(*key);
            }
        }
        for (hub, peer) in concerned {
            self.look_within(hub, at, 0);
            let lanes = |key: &Key| {
                key.hub == Some(hub) && key.peer == Some(peer) && key.code != Code::PeerDied
            };
            self.conclude(lanes, State::Ended, "a process of the lane ended");
            for direction in [Direction::ToPeer, Direction::ToHost] {
                self.end(
                    LaneId {
                        hub,
                        peer,
                        direction,
                    },
                    "a process of the lane ended",
                );
            }
        }
    }

    /// What a record says: [`Input::Event`](crate::input::Input::Event) for those who have very many.
    pub fn event_seen(&mut self, event: &Event) {
        if event.at < self.sorted_until {
            // Too late to be sorted in: the history has a hole where it belongs.
            self.summary.evicted += 1;
            let at = self.sorted_until.plus(SKEW);
            for lane in self.lanes.values_mut() {
                lane.history.incomplete_until(at);
            }
            return;
        }
        if self.pending.len() >= MOST_PENDING {
            self.summary.evicted += 1;
            if let Some(first) = self.pending.remove_first() {
                self.lost(Loss {
                    from: first.at,
                    to: first.at,
                    records: 1,
                });
            }
        }
        self.pending.push(event);
    }

    pub(super) fn lost(&mut self, loss: Loss) {
        self.lost_at = self.lost_at.max(loss.to);
        // What happened before the hole may bear a later time.
        let to = loss.to.plus(SKEW);
        for lane in self.lanes.values_mut() {
            lane.history.incomplete_until(to);
        }
    }

    /// An event whose turn has come.
    pub(super) fn event(&mut self, event: &Event) {
        if let EventKind::Sleep { for_fds, .. } = event.kind {
            self.servers.slept(event.proc, event.tid, event.at);
            if for_fds {
                self.servers.saw(event.proc, event.tid);
            }
        }
        match &event.kind {
            EventKind::Ring {
                end, result, rings, ..
            } => {
                let Some(ends) = self.ends.get(end).copied() else {
                    return;
                };
                let indexes = rings
                    .filter(|rings| concerns(rings, ends.rings))
                    .and_then(|rings| of(&rings, ends.rings.direction));
                let Some(lane) = self.lanes.get_mut(&ends.rings) else {
                    return;
                };
                self.servers.saw(event.proc, event.tid);
                let now = self.now;
                if let Some(peer) = self.peers.get_mut(&(ends.rings.hub, ends.rings.peer)) {
                    if peer.binding.plugin == Some(event.proc) {
                        peer.begun.get_or_insert(Begun {
                            at: event.at,
                            known: now,
                        });
                    }
                    if let Some(indexes) = indexes {
                        lane.seen_before(peer, now, event.at, indexes);
                    }
                }
                lane.history.event(event);
                if let Some(indexes) = indexes {
                    lane.history.seen(event.at, indexes);
                }
                lane.history.rang(Ring {
                    at: event.at,
                    proc: event.proc,
                    tid: event.tid,
                    result: *result,
                    head: indexes.map(|indexes| indexes.head),
                    excess: None,
                });
            }
            EventKind::Take {
                end, result, rings, ..
            } => {
                let Some(ends) = self.ends.get(end).copied() else {
                    return;
                };
                let Some(lane) = self.lanes.get_mut(&ends.takes) else {
                    return;
                };
                lane.history.event(event);
                let indexes = rings.and_then(|rings| of(&rings, ends.takes.direction));
                if let Some(indexes) = indexes {
                    lane.history.seen(event.at, indexes);
                }
                if *result > 0 {
                    self.servers.saw(event.proc, event.tid);
                    lane.service.took(event.tid);
                    lane.history.took(Take {
                        at: event.at,
                        proc: event.proc,
                        tid: event.tid,
                        head: indexes.map(|indexes| indexes.head),
                    });
                }
            }
            EventKind::Sleep {
                rings: Some(rings), ..
            } => {
                // Sleeps of the consumer belong to the story of its lane.
                for direction in [Direction::ToPeer, Direction::ToHost] {
                    let id = LaneId {
                        hub: rings.hub,
                        peer: rings.peer,
                        direction,
                    };
                    let Some(ring) = of(rings, direction) else {
                        continue;
                    };
                    let consumer = self.consumer(id);
                    if let Some(lane) = self.lanes.get_mut(&id) {
                        lane.history.seen(event.at, ring);
                        if consumer == Some(event.proc) {
                            lane.service.slept(event.tid, ring.is_empty());
                            lane.history.event(event);
                        }
                    }
                }
            }
            EventKind::Wake { .. } => self.servers.saw(event.proc, event.tid),
            _ => {}
        }
    }

    pub(super) fn sample(&mut self, sample: &Sample) {
        let lane = self.lanes.entry(sample.lane).or_default();
        if sample.at < lane.sampled_at {
            return; // older than what is known
        }
        lane.sampled_at = sample.at;
        lane.history.seen(sample.at, sample.ring);
        lane.capacity = sample.capacity;
        let before = lane.ring.replace(sample.ring);
        self.settle_doubt(sample);
        if before == Some(sample.ring) {
            return;
        }
        let ring = sample.ring;
        let crossed = ring.tail > ring.head || ring.len() > u64::from(sample.capacity);
        self.look_within(
            sample.lane.hub,
            sample.at,
            if crossed { 0 } else { hubs::LOOK },
        );
        if let Some(before) = before {
            self.moved_back(sample, before);
        }
        let Some(lane) = self.lanes.get_mut(&sample.lane) else {
            return;
        };
        lane.unchanged_since = sample.at;
        lane.look_at = sample.at.plus(STANDSTILL);
        lane.healthy_looks = 0;
        lane.owed = false;
        lane.unseen = None;
        lane.inconclusive_said = false;
        let moved = before.is_some_and(|before| before.tail != sample.ring.tail);
        if sample.ring.is_empty() {
            lane.waiting_since = None;
        } else if moved || lane.waiting_since.is_none() {
            lane.waiting_since = Some(sample.at);
        }
        if moved {
            self.consumed(sample.lane, sample.at, sample.ring);
        } else if let Some(lane) = self.lanes.get_mut(&sample.lane)
            && let Some(suspicion) = &mut lane.suspicion
        {
            // More entries behind the stuck one do not heal it, but a new head wants a new proof.
            suspicion.restarts = 0;
            lane.look_at = sample.at;
        }
    }

    /// Something changed in a hub that may have been idle: it is looked at `wait` ns later at the latest.
    fn look_within(&mut self, hub: HubId, at: Mono, wait: u64) {
        if let Some(hub) = self.hubs.get_mut(&hub) {
            hub.look_at = hub.look_at.min(at.plus(wait));
        }
    }

    /// The tail moved: whatever was stuck is over.
    pub(super) fn consumed(&mut self, id: LaneId, at: Mono, ring: Indexes) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        if let Some(suspicion) = lane.suspicion.take() {
            self.healed.push(Healed {
                lane: id,
                suspicion,
                at,
            });
        }
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        if let Some(open) = lane.open.take() {
            let woken = woken_by(lane, open.since, at);
            let mut finding =
                self.finding(id, open.id, open.code, open.cause, State::Recovered, at);
            finding.ring = Some(ring);
            finding.stuck_ns = at.since(open.since);
            finding.note = Some(woken);
            self.say(finding);
        }
    }
}

/// Whether indexes read along with a call are those of this lane's peer.
fn concerns(rings: &PeerRings, lane: LaneId) -> bool {
    rings.hub == lane.hub && rings.peer == lane.peer
}

fn of(rings: &PeerRings, direction: Direction) -> Option<Indexes> {
    match direction {
        Direction::ToPeer => rings.to_peer,
        Direction::ToHost => rings.to_host,
    }
}
