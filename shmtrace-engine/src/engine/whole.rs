//! Hubs as a whole, threads that starve, and memory: states that are findings once they last.

use super::{Engine, LOOK_LOST, findings::rule};
use crate::{
    Code, Direction, Finding, HubId, LaneId, Mono, Output, PeerId, ProcId, Request, State, Tid,
    condition::{Key, Said},
    explain::sentence,
    hubs::{self, Hub},
    input::{HubObservation, Indexes, LaneObservation, MemoryObservation, ThreadObservation},
    lane::Lane,
};

/// How often memory limits are looked at, ns.
const MEMORY_LOOK: u64 = 1_000_000_000;
/// After a peer was bound anew its ring may start anew for this long, ns.
pub(super) const SETTLED: u64 = 2_000_000_000;

impl Engine {
    pub(super) fn look_at_hubs(&mut self) {
        let now = self.now;
        for (id, hub) in &mut self.hubs {
            if now >= hub.look_at
                && hub
                    .asked_at
                    .is_none_or(|asked| now.since(asked) >= LOOK_LOST)
            {
                hub.asked_at = Some(now);
                self.output
                    .push_back(Output::Request(Request::ObserveHub(*id)));
            }
        }
        if !self.hubs.is_empty() && now.since(self.memory_at) >= MEMORY_LOOK {
            self.memory_at = now;
            self.memory_looks += 1;
            self.output
                .push_back(Output::Request(Request::ObserveMemory));
        }
    }

    pub(super) fn hub_observed(&mut self, seen: &HubObservation) {
        self.now = self.now.max(seen.at);
        let id = seen.hub;
        let last_move = self
            .lanes_of(id)
            .map(|(_, lane)| lane.unchanged_since)
            .max()
            .unwrap_or_default();
        let verdict = self
            .lanes_of(id)
            .filter(|(_, lane)| lane.suspicion.is_some())
            .map(|(_, lane)| lane.look_at)
            .min();
        let Some(hub) = self.hubs.get_mut(&id) else {
            return;
        };
        hub.asked_at = None;
        let looked_at = std::mem::replace(&mut hub.looked_at, seen.at);
        // Who is who is told late where records were lost.
        let lossy = self.lost_at > Mono(0) && seen.at.since(self.lost_at) < SETTLED;
        let grace = if lossy { SETTLED } else { self.config.grace };
        let mut shown = hub.shown(seen, grace, last_move);
        // Nothing has moved and nothing is the matter: whatever changes that shows as a move or an exit.
        let idle = shown.is_empty()
            && !hub.is_watched()
            && self.config.expect_progress.is_none()
            && seen.at.since(last_move) > hubs::LOOK_IDLE;
        hub.look_at = seen
            .at
            .plus(if idle { hubs::LOOK_IDLE } else { hubs::LOOK });
        // Before a suspicion becomes a verdict, in the same turn: its ring may have been broken meanwhile.
        if let Some(verdict) = verdict {
            hub.look_at = hub.look_at.min(verdict.max(seen.at.plus(1)));
        }
        for (lane, state) in self.lanes.iter_mut().filter(|(lane, _)| lane.hub == id) {
            let owes = lane.direction == Direction::ToPeer && hub.owes(lane.peer);
            state.owed = owes && state.unchanged_since < seen.at;
        }
        shown.extend(self.quiet(seen, last_move));
        // A ring that starts anew for a new plugin is no broken ring: the next look will tell.
        let all = shown.len();
        shown.retain(|shown| {
            let dead = |peer| {
                let mut entries = seen.peers.iter();
                entries.any(|entry| entry.peer == peer && entry.alive == Some(false))
            };
            shown.key.code != Code::RingCorrupt
                || shown
                    .key
                    .peer
                    .is_none_or(|peer| !dead(peer) && !self.may_begin(id, peer, looked_at, seen.at))
        });
        for gone in self.conditions.keys() {
            // A broken ring stays broken, and a starved thread is seen by its lane.
            let own =
                gone.hub == Some(id) && !matches!(gone.code, Code::RingCorrupt | Code::Starved);
            if own && !shown.iter().any(|shown| shown.key == gone) {
                self.conclude(
                    |key| *key == gone,
                    State::Recovered,
                    "it is not so any more",
                );
            }
        }
        let lasts = self
            .hubs
            .get(&id)
            .into_iter()
            .flat_map(|hub| hub.due(last_move));
        let quiet = self
            .config
            .expect_progress
            .map(|expected| last_move.max(self.attached).plus(expected));
        let settles = (shown.len() < all).then(|| seen.at.plus(hubs::LOOK / 5));
        let mut due: Vec<Mono> = lasts
            .chain(quiet)
            .chain(settles)
            .filter(|at| *at > seen.at)
            .collect();
        for hubs::Shown {
            key,
            looks,
            grace,
            explanation,
        } in shown
        {
            self.holds(key, looks, grace, explanation, Vec::new());
            let unsaid = self.conditions.unsaid_since(&key);
            due.extend(unsaid.map(|since| since.plus(grace)));
        }
        if let (Some(hub), Some(due)) = (self.hubs.get_mut(&id), due.into_iter().min()) {
            hub.look_at = hub.look_at.min(due.max(seen.at.plus(hubs::AGAIN)));
        }
    }

    /// Quiet, where progress is expected: who owes the next step?
    pub(super) fn quiet(&self, seen: &HubObservation, last_move: Mono) -> Option<hubs::Shown> {
        let expected = self.config.expect_progress?;
        let id = seen.hub;
        let empty = self
            .lanes_of(id)
            .all(|(_, lane)| lane.ring.is_none_or(Indexes::is_empty));
        let since = last_move.max(self.attached);
        if seen.all_asleep != Some(true) || !empty || seen.at.since(since) < expected {
            return None;
        }
        let quiet = (seen.at.since(since)) / 1_000_000;
        let owed = self
            .hubs
            .get(&id)
            .and_then(Hub::unanswered)
            .map(|(peer, message)| {
                let what = format!(
                    "message {} on channel {}, method {:#x}",
                    message.msg_id, message.channel, message.method
                );
                (peer, what)
            });
        let owed = owed.or_else(|| {
            self.owing(id)
                .map(|peer| (peer, "its last message".to_owned()))
        });
        let key = |code, peer| Key {
            code,
            hub: Some(id),
            peer,
            lane: None,
        };
        Some(match owed {
            Some((peer, what)) => hubs::Shown {
                key: key(Code::Unanswered, Some(peer)),
                looks: 2,
                grace: 0,
                explanation: format!(
                    "Nothing has moved for {quiet} ms and everybody sleeps: {} took {what} from its ring and gave no answer. Look for a \
                     task that was dropped, or a reply that went nowhere.",
                    self.peer_name(id, peer)
                ),
            },
            None => hubs::Shown {
                key: key(Code::NeverEnqueued, None),
                looks: 2,
                grace: 0,
                explanation: format!(
                    "Nothing has moved for {quiet} ms, everybody sleeps, all rings are empty and no call is open: the host waits for \
                     something that it never enqueued, or enqueued for another peer."
                ),
            },
        })
    }

    /// A peer whose last traffic was a message to it, where no descriptors tell more. Of those whose answers can be told
    /// from the descriptors nothing is open: an answer can be rung before the call that rang for its request returns.
    pub(super) fn owing(&self, hub: HubId) -> Option<PeerId> {
        // A ring call's record is exact; a sample may show request and answer as one move.
        let moved = |peer, direction| {
            let lane = self.lanes.get(&LaneId {
                hub,
                peer,
                direction,
            })?;
            let rung = lane.history.rings.back().map(|ring| ring.at);
            rung.or((lane.unchanged_since > self.attached).then_some(lane.unchanged_since))
        };
        let mut peers = self
            .peers
            .keys()
            .filter(|(of, _)| *of == hub)
            .map(|(_, peer)| *peer)
            .filter(|peer| !self.hubs.get(&hub).is_some_and(|hub| hub.tells(*peer)));
        peers.rfind(|peer| moved(*peer, Direction::ToPeer) > moved(*peer, Direction::ToHost))
    }

    /// A thread that could take the entries is runnable and is hardly ever run.
    pub(super) fn starving(&mut self, id: LaneId, seen: &LaneObservation, bystanders: &[Tid]) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        let key = Key {
            code: Code::Starved,
            hub: Some(id.hub),
            peer: Some(id.peer),
            lane: Some(id),
        };
        let starved = lane.starving.observe(seen, bystanders);
        let Some((proc, starved)) = seen.consumer.proc.zip(starved) else {
            self.conclude(|held| *held == key, State::Recovered, "it runs again");
            return;
        };
        if !starved.waits {
            return; // it has just got a moment of a CPU
        }
        let explanation = format!(
            "A thread of {} was woken and was on a CPU for {} us of the last {} ms: look at the load, at priorities and at CPU limits of \
             its cgroup. This is no lost wakeup.",
            self.consumer_name(id),
            starved.ran / 1000,
            starved.lasted / 1_000_000
        );
        let threads = seen.consumer.threads.iter();
        let threads = threads.map(|thread| (proc, thread.clone())).collect();
        self.holds(key, 1, 0, explanation, threads);
    }

    pub(super) fn memory_observed(&mut self, seen: &MemoryObservation) {
        self.now = self.now.max(seen.at);
        let key = Key {
            code: Code::MemoryLimit,
            hub: None,
            peer: None,
            lane: None,
        };
        let before = self.memory.insert(seen.cgroup.clone(), seen.clone());
        if self.memory.len() > 1024 {
            self.memory.pop_first();
        }
        // What the first look shows had happened before. A cgroup that is entered later is a new one, as a rule: what
        // happened in it happened to these processes, however soon after the first look it was.
        let known = self.memory_looks <= 1;
        let (kills, hits) = match &before {
            Some(before) => (before.oom_kills, before.limit_hits),
            None if known => return,
            None => (0, seen.limit_hits),
        };
        let killed = seen.oom_kills > kills;
        // Reclaim at the limit is everyday life of a build; it matters when nothing gets on any more.
        let last_move = self
            .lanes
            .values()
            .map(|lane| lane.unchanged_since)
            .max()
            .unwrap_or_default();
        let full = seen.max.is_some_and(|max| seen.current >= max - max / 128);
        let pressed = full && seen.limit_hits > hits && seen.at.since(last_move) >= MEMORY_LOOK;
        if killed || pressed {
            let what = if killed {
                "the kernel killed a process of it"
            } else {
                "it is full and nothing moves"
            };
            let explanation = format!(
                "Cgroup {} has reached its memory limit ({} of {} bytes in use): {what}. What hangs or dies now does so for want of memory, not \
                 because of the transport.",
                seen.cgroup,
                seen.current,
                seen.max
                    .map_or_else(|| "unlimited".to_owned(), |max| max.to_string())
            );
            self.holds(key, if killed { 1 } else { 2 }, 0, explanation, Vec::new());
        } else if !full {
            self.conclude(|held| *held == key, State::Recovered, "there is room again");
        }
    }

    /// A state holds: says so when it is time.
    pub(super) fn holds(
        &mut self,
        key: Key,
        looks: u32,
        grace: u64,
        explanation: String,
        threads: Vec<(ProcId, ThreadObservation)>,
    ) {
        let Some(said) = self
            .conditions
            .holds(key, self.now, looks, grace, &mut self.next_id)
        else {
            return;
        };
        let mut finding = self.condition_finding(&key, said);
        finding.explanation = explanation;
        finding.threads = threads;
        self.say(finding);
    }

    /// States that match are over.
    pub(super) fn conclude(&mut self, which: impl Fn(&Key) -> bool, state: State, note: &str) {
        for key in self.conditions.keys() {
            if !which(&key) {
                continue;
            }
            if let Some(said) = self.conditions.over(&key, self.now, state) {
                let mut finding = self.condition_finding(&key, said);
                finding.note = Some(note.to_owned());
                self.say(finding);
            }
        }
    }

    pub(super) fn condition_finding(&self, key: &Key, said: Said) -> Finding {
        let peer = key.hub.zip(key.peer).and_then(|at| self.binding(at));
        let any_of_hub = || {
            let mut bindings = self.peers.values().map(|peer| &peer.binding);
            bindings.find(|peer| Some(peer.hub) == key.hub)
        };
        let lane = key.lane.and_then(|id| self.lanes.get(&id));
        let mut finding = Finding {
            id: said.id,
            at: self.now,
            code: key.code,
            cause: None,
            state: said.state,
            hub: key.hub,
            lane: key.lane,
            peer: key.peer,
            plugin: peer.and_then(|peer| peer.plugin),
            host: peer.or_else(any_of_hub).and_then(|peer| peer.host),
            ring: lane.and_then(|lane| lane.ring),
            capacity: lane.map(|lane| lane.capacity),
            doorbell_pending: None,
            stuck_ns: said.lasted,
            count: said.count,
            threads: Vec::new(),
            timeline: lane
                .map(|lane| lane.history.events.iter().copied().collect())
                .unwrap_or_default(),
            rule: rule(key.code),
            explanation: String::new(),
            note: None,
            culprit: None,
        };
        finding.explanation = sentence(&finding, peer);
        finding
    }

    pub(super) fn lanes_of(&self, hub: HubId) -> impl Iterator<Item = (&LaneId, &Lane)> {
        self.lanes.iter().filter(move |(id, _)| id.hub == hub)
    }

    pub(super) fn peer_name(&self, hub: HubId, peer: PeerId) -> String {
        match self.binding((hub, peer)) {
            Some(binding) if !binding.name.is_empty() => {
                format!("{} (peer {})", binding.name, peer.0)
            }
            _ => format!("peer {}", peer.0),
        }
    }

    pub(super) fn consumer_name(&self, id: LaneId) -> String {
        match id.direction {
            Direction::ToPeer => self.peer_name(id.hub, id.peer),
            Direction::ToHost => "the host".to_owned(),
        }
    }
}
