//! The engine: routes inputs to lanes, asks for looks, and moves findings through their life.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
};

use crate::{
    Cause, Code, Config, Direction, Finding, HubId, LaneId, Mono, Output, PeerId, ProcId, Request,
    SocketInode, State, Summary, cause,
    explain::sentence,
    history::{Ring, Take},
    input::{
        Event, EventKind, Indexes, Input, LaneObservation, Loss, PeerBinding, Sample, Topology,
    },
    lane::{Lane, Open, Suspicion},
    stuck::{self, Shown},
};

/// A lane that stands still for this long is looked at, ns: longer than any healthy producer needs from publish to ring
/// unless it is off the CPU, which a look shows.
const STANDSTILL: u64 = 4_000_000;
/// Looks at a lane that turned out healthy are spaced by this, doubled each time, ns.
const LOOK_AGAIN: u64 = 5_000_000;
/// The largest such space, ns.
const LOOK_AGAIN_MOST: u64 = 160_000_000;
/// A look that was not answered for this long is asked for again, ns.
const LOOK_LOST: u64 = 500_000_000;
/// What cannot be seen for this long is said, ns.
const UNSEEN: u64 = 1_000_000_000;
/// A consumer that runs from time to time (a heartbeat) and leaves its entries each time never shows one long sleep.
/// After this many such runs, and as many graces, the lane is as stuck as if it had slept.
const RESTARTS: u32 = 20;
/// Events waiting to be sorted at most.
const MOST_PENDING: usize = 1 << 20;
/// How long after a stuck lane moved the records that tell why are waited for, ns.
const HEALED_WAIT: u64 = 30_000_000;

/// The correlation engine.
///
/// Feed it with [`handle`](Self::handle), tell it the time with [`advance`](Self::advance), and take what it has to say
/// with [`poll_output`](Self::poll_output) until that is `None`. Call `advance` again at
/// [`next_timeout`](Self::next_timeout) at the latest.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    attached: Mono,
    now: Mono,
    lanes: BTreeMap<LaneId, Lane>,
    peers: BTreeMap<(HubId, PeerId), PeerBinding>,
    ends: BTreeMap<SocketInode, End>,
    dead: BTreeSet<ProcId>,
    pending: BinaryHeap<Reverse<Queued>>,
    queued: u64,
    sorted_until: Mono,
    healed: Vec<Healed>,
    output: VecDeque<Output>,
    next_id: u64,
    summary: Summary,
}

/// Which part of which peer's doorbell a socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    /// Lane that is rung on it.
    rings: LaneId,
    /// Lane whose tokens are queued on it.
    takes: LaneId,
}

/// An event on its way through the sort.
#[derive(Debug, PartialEq, Eq)]
struct Queued {
    at: Mono,
    number: u64,
    event: Event,
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A suspicion whose lane moved before the grace was over: masked, or only late.
#[derive(Debug)]
struct Healed {
    lane: LaneId,
    suspicion: Suspicion,
    at: Mono,
}

impl Engine {
    /// An engine that knows nothing yet.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            attached: Mono(0),
            now: Mono(0),
            lanes: BTreeMap::new(),
            peers: BTreeMap::new(),
            ends: BTreeMap::new(),
            dead: BTreeSet::new(),
            pending: BinaryHeap::new(),
            queued: 0,
            sorted_until: Mono(0),
            healed: Vec::new(),
            output: VecDeque::new(),
            next_id: 1,
            summary: Summary::default(),
        }
    }

    /// Tracing begins: what happened before is not known.
    pub fn attached(&mut self, at: Mono) {
        self.attached = at;
        self.now = self.now.max(at);
    }

    /// Takes one input.
    pub fn handle(&mut self, input: Input) {
        match input {
            Input::Topology(topology) => self.topology(topology),
            Input::Event(event) => self.queue(event),
            Input::Loss(loss) => self.lost(loss),
            Input::Sample(sample) => self.sample(&sample),
            Input::Lane(seen) => self.observed(seen),
            Input::Hub(_) | Input::Memory(_) => {}
        }
    }

    /// The time is `now`, and every event up to `complete_until` was handed in.
    pub fn advance(&mut self, now: Mono, complete_until: Mono) {
        self.now = self.now.max(now);
        while self
            .pending
            .peek()
            .is_some_and(|Reverse(first)| first.at <= complete_until)
        {
            if let Some(Reverse(queued)) = self.pending.pop() {
                self.sorted_until = self.sorted_until.max(queued.at);
                self.event(&queued.event);
            }
        }
        self.look_at_lanes();
        self.settle_healed();
    }

    /// The next thing to do or to say.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.output.pop_front()
    }

    /// When to call [`advance`](Self::advance) at the latest.
    pub fn next_timeout(&self) -> Option<Mono> {
        let graces = self
            .lanes
            .values()
            .filter(|lane| lane.suspicion.is_some())
            .map(|lane| lane.look_at);
        let healed = self.healed.iter().map(|healed| healed.at.plus(HEALED_WAIT));
        graces.chain(healed).min()
    }

    /// Sums so far.
    pub fn summary(&self) -> Summary {
        let mut summary = self.summary.clone();
        summary.oldest_waiting = self
            .lanes
            .values()
            .filter_map(|lane| lane.waiting_since)
            .min();
        summary
    }
}

/// Inputs.
impl Engine {
    fn topology(&mut self, topology: Topology) {
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
                self.peers.retain(|(of, _), _| *of != hub);
                self.ends.retain(|_, end| end.rings.hub != hub);
            }
            Topology::Hub { .. } | Topology::Process { .. } => {}
        }
    }

    fn bind(&mut self, binding: PeerBinding) {
        let lane = |direction| LaneId {
            hub: binding.hub,
            peer: binding.peer,
            direction,
        };
        let (to_peer, to_host) = (lane(Direction::ToPeer), lane(Direction::ToHost));
        let previous = self.peers.get(&(binding.hub, binding.peer));
        let changed = previous.is_none_or(|before| {
            (
                before.plugin,
                before.host,
                before.host_end,
                before.plugin_end,
            ) != (
                binding.plugin,
                binding.host,
                binding.host_end,
                binding.plugin_end,
            )
        });
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
                lane.history.incomplete_until(self.now.max(self.attached));
            }
        }
        self.peers.insert((binding.hub, binding.peer), binding);
    }

    fn exited(&mut self, proc: ProcId, at: Mono) {
        self.now = self.now.max(at);
        self.dead.insert(proc);
        if self.dead.len() > 4096 {
            self.dead.pop_first();
        }
        let concerned: Vec<(HubId, PeerId)> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.plugin == Some(proc) || peer.host == Some(proc))
            .map(|(key, _)| *key)
            .collect();
        for (hub, peer) in concerned {
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

    fn queue(&mut self, event: Event) {
        if event.at < self.sorted_until {
            // Too late to be sorted in: the history has a hole where it belongs.
            self.summary.evicted += 1;
            let at = self.sorted_until;
            for lane in self.lanes.values_mut() {
                lane.history.incomplete_until(at);
            }
            return;
        }
        if self.pending.len() >= MOST_PENDING {
            self.summary.evicted += 1;
            if let Some(Reverse(first)) = self.pending.pop() {
                self.lost(Loss {
                    from: first.at,
                    to: first.at,
                    records: 1,
                });
            }
        }
        self.queued += 1;
        self.pending.push(Reverse(Queued {
            at: event.at,
            number: self.queued,
            event,
        }));
    }

    fn lost(&mut self, loss: Loss) {
        for lane in self.lanes.values_mut() {
            lane.history.incomplete_until(loss.to);
        }
    }

    /// An event whose turn has come.
    fn event(&mut self, event: &Event) {
        match &event.kind {
            EventKind::Ring {
                end, result, rings, ..
            } => {
                let Some(ends) = self.ends.get(end).copied() else {
                    return;
                };
                let indexes = rings.map(|rings| of(&rings, ends.rings.direction));
                let Some(lane) = self.lanes.get_mut(&ends.rings) else {
                    return;
                };
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
                if let Some(rings) = rings {
                    lane.history.seen(event.at, of(rings, ends.takes.direction));
                }
                if *result > 0 {
                    lane.history.took(Take {
                        at: event.at,
                        proc: event.proc,
                        tid: event.tid,
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
                    let consumer = self.consumer(id);
                    if let Some(lane) = self.lanes.get_mut(&id) {
                        lane.history.seen(event.at, of(rings, direction));
                        if consumer == Some(event.proc) {
                            lane.history.event(event);
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn sample(&mut self, sample: &Sample) {
        let lane = self.lanes.entry(sample.lane).or_default();
        lane.history.seen(sample.at, sample.ring);
        lane.capacity = sample.capacity;
        let before = lane.ring.replace(sample.ring);
        if before == Some(sample.ring) {
            return;
        }
        lane.unchanged_since = sample.at;
        lane.look_at = sample.at.plus(STANDSTILL);
        lane.healthy_looks = 0;
        lane.baseline = None;
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

    /// The tail moved: whatever was stuck is over.
    fn consumed(&mut self, id: LaneId, at: Mono, ring: Indexes) {
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

/// Looks.
impl Engine {
    fn look_at_lanes(&mut self) {
        let now = self.now;
        for (id, lane) in &mut self.lanes {
            let waiting = lane.ring.is_some_and(|ring| !ring.is_empty());
            if !waiting || lane.open.is_some() || now < lane.look_at {
                continue;
            }
            if lane
                .asked_at
                .is_some_and(|asked| now.since(asked) < LOOK_LOST)
            {
                continue;
            }
            lane.asked_at = Some(now);
            self.output
                .push_back(Output::Request(Request::ObserveLane(*id)));
        }
    }

    fn observed(&mut self, seen: Box<LaneObservation>) {
        let id = seen.lane;
        self.now = self.now.max(seen.finished);
        self.sample(&Sample {
            at: seen.finished,
            lane: id,
            ring: seen.after,
            capacity: seen.capacity,
        });
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        lane.asked_at = None;
        if lane.open.is_some() {
            return;
        }
        let announced = lane
            .history
            .rings
            .back()
            .is_some_and(|ring| ring.head.is_some_and(|head| head >= seen.after.head));
        match stuck::shown(&seen, lane.baseline.as_deref(), announced) {
            Shown::Moving => self.healthy(id, seen),
            Shown::Unseen(why) => self.unseen(id, why, &seen),
            Shown::Stuck(code) => self.stuck(id, code, seen),
        }
    }

    fn healthy(&mut self, id: LaneId, seen: Box<LaneObservation>) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        lane.unseen = None;
        lane.healthy_looks += 1;
        let space = LOOK_AGAIN << lane.healthy_looks.min(10).saturating_sub(1);
        lane.look_at = seen.finished.plus(space.min(LOOK_AGAIN_MOST));
        if lane.suspicion.is_some() {
            // It runs now; whether it takes the entries will be seen. Look soon.
            lane.look_at = seen.finished.plus(LOOK_AGAIN);
        }
        lane.baseline.get_or_insert(seen);
    }

    fn unseen(&mut self, id: LaneId, why: String, seen: &LaneObservation) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        lane.look_at = seen.finished.plus(LOOK_AGAIN_MOST);
        let since = match &lane.unseen {
            Some((since, _)) => *since,
            None => seen.finished,
        };
        lane.unseen = Some((since, why.clone()));
        if seen.finished.since(since) < UNSEEN || lane.inconclusive_said {
            return;
        }
        lane.inconclusive_said = true;
        lane.suspicion = None;
        let number = self.number();
        let mut finding = self.finding(
            id,
            number,
            Code::MissedWakeup,
            Some(Cause::Unknown),
            State::Inconclusive,
            self.now,
        );
        evidence(&mut finding, seen);
        finding.stuck_ns = seen.finished.since(since);
        finding.note = Some(why);
        self.say(finding);
    }

    fn stuck(&mut self, id: LaneId, code: Code, seen: Box<LaneObservation>) {
        let grace = self.config.grace;
        let number = self.next_id;
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        lane.unseen = None;
        let Some(suspicion) = &mut lane.suspicion else {
            let since = seen.begun;
            lane.look_at = since.plus(grace);
            lane.suspicion = Some(Suspicion {
                id: number,
                code,
                since,
                first: seen.clone(),
                steady: seen.clone(),
                restarts: 0,
            });
            self.next_id += 1;
            let mut finding = self.finding(id, number, code, None, State::Suspect, seen.finished);
            evidence(&mut finding, &seen);
            self.say(finding);
            return;
        };
        let same = suspicion.code == code && suspicion.steady.after == seen.after;
        let slept = stuck::slept_between(&suspicion.steady, &seen) == Some(true);
        let long = suspicion.restarts >= RESTARTS
            && seen.finished.since(suspicion.since) >= grace * u64::from(RESTARTS);
        if !same || !(slept || long) {
            suspicion.restarts += u32::from(same);
            suspicion.code = code;
            lane.look_at = seen.begun.plus(grace);
            suspicion.steady = seen;
            return;
        }
        let steady_for = seen.begun.since(suspicion.steady.finished);
        // The reading took time itself; one look more costs little.
        if steady_for < grace.saturating_sub(2 * (seen.finished.since(seen.begun))) && !long {
            lane.look_at = suspicion.steady.finished.plus(grace);
            return;
        }
        self.proven(id, &seen);
    }

    fn proven(&mut self, id: LaneId, seen: &LaneObservation) {
        // The cause is judged by all records that there are, sorted as far as they can be.
        while let Some(Reverse(queued)) = self.pending.pop() {
            self.sorted_until = self.sorted_until.max(queued.at);
            self.event(&queued.event);
        }
        let Some(suspicion) = self
            .lanes
            .get_mut(&id)
            .and_then(|lane| lane.suspicion.take())
        else {
            return;
        };
        let code = suspicion.code;
        let verdict = (code == Code::MissedWakeup).then(|| self.cause(id, seen.after));
        let cause = verdict.map(|verdict| verdict.cause);
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        lane.open = Some(Open {
            id: suspicion.id,
            state: State::Missed,
            code,
            cause,
            since: suspicion.since,
            ring: seen.after,
        });
        *lane.counts.entry((code, cause)).or_default() += 1;
        let mut finding = self.finding(id, suspicion.id, code, cause, State::Missed, self.now);
        evidence(&mut finding, seen);
        finding.stuck_ns = seen.finished.since(suspicion.since);
        finding.culprit = verdict.and_then(|verdict| verdict.culprit);
        finding.explanation = sentence(&finding, self.peers.get(&(id.hub, id.peer)));
        self.say(finding);
    }

    fn cause(&self, id: LaneId, ring: Indexes) -> cause::Verdict {
        let Some(lane) = self.lanes.get(&id) else {
            return cause::Verdict {
                cause: Cause::Unknown,
                culprit: None,
            };
        };
        let producer = self.producer(id);
        let strays: Vec<Ring> = self
            .lanes
            .iter()
            .filter(|(other, _)| {
                **other != id && producer.is_some() && self.producer(**other) == producer
            })
            .flat_map(|(_, other)| {
                (0..other.history.rings.len())
                    .filter(|index| {
                        other
                            .history
                            .surplus(*index)
                            .is_some_and(|surplus| surplus >= 1)
                    })
                    .map(|index| other.history.rings[index])
            })
            .collect();
        cause::judge(&cause::Case {
            history: &lane.history,
            ring,
            consumer: self.consumer(id),
            strays: &strays,
            blind: false,
        })
    }

    /// Decides what became of suspicions whose lanes moved, once the records about it are in.
    fn settle_healed(&mut self) {
        let now = self.now;
        let (ready, waiting) = std::mem::take(&mut self.healed)
            .into_iter()
            .partition(|healed| now.since(healed.at) >= HEALED_WAIT);
        self.healed = waiting;
        for healed in ready {
            self.masked(&healed);
        }
    }

    /// Masked, if an unrelated signal healed it: a ring that announced later entries, or none that could be seen.
    fn masked(&mut self, healed: &Healed) {
        let Suspicion {
            id: number,
            code,
            since,
            first,
            ..
        } = &healed.suspicion;
        let Some(lane) = self.lanes.get(&healed.lane) else {
            return;
        };
        if *code != Code::MissedWakeup || !lane.history.covers(first.after.tail) {
            return;
        }
        // A ring for the very entries that waited: the producer was only late.
        let late = lane.history.rings.iter().any(|ring| {
            ring.at >= first.begun
                && ring.at <= healed.at
                && ring.head.is_none_or(|head| head <= first.after.head)
        });
        if late {
            return;
        }
        let note = woken_by(lane, *since, healed.at);
        let verdict = self.cause(healed.lane, first.after);
        let mut finding = self.finding(
            healed.lane,
            *number,
            *code,
            Some(verdict.cause),
            State::Masked,
            healed.at,
        );
        evidence(&mut finding, first);
        finding.stuck_ns = healed.at.since(*since);
        finding.note = Some(note);
        finding.culprit = verdict.culprit;
        finding.explanation = sentence(
            &finding,
            self.peers.get(&(healed.lane.hub, healed.lane.peer)),
        );
        if let Some(lane) = self.lanes.get_mut(&healed.lane) {
            *lane.counts.entry((*code, Some(verdict.cause))).or_default() += 1;
        }
        self.say(finding);
    }

    /// A process of the lane ended, or its hub is gone.
    fn end(&mut self, id: LaneId, why: &str) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        lane.suspicion = None;
        let Some(open) = lane.open.take() else { return };
        let mut finding = self.finding(id, open.id, open.code, open.cause, State::Ended, self.now);
        finding.ring = Some(open.ring);
        finding.stuck_ns = self.now.since(open.since);
        finding.note = Some(why.to_owned());
        self.say(finding);
    }
}

/// Findings.
impl Engine {
    fn number(&mut self) -> u64 {
        let number = self.next_id;
        self.next_id += 1;
        number
    }

    fn finding(
        &self,
        id: LaneId,
        number: u64,
        code: Code,
        cause: Option<Cause>,
        state: State,
        at: Mono,
    ) -> Finding {
        let lane = self.lanes.get(&id);
        let peer = self.peers.get(&(id.hub, id.peer));
        let mut finding = Finding {
            id: number,
            at,
            code,
            cause,
            state,
            hub: Some(id.hub),
            lane: Some(id),
            peer: Some(id.peer),
            plugin: peer.and_then(|peer| peer.plugin),
            host: peer.and_then(|peer| peer.host),
            ring: lane.and_then(|lane| lane.ring),
            capacity: lane.map(|lane| lane.capacity),
            doorbell_pending: None,
            stuck_ns: 0,
            count: lane
                .and_then(|lane| lane.counts.get(&(code, cause)).copied())
                .unwrap_or(0)
                .max(1),
            threads: Vec::new(),
            timeline: lane
                .map(|lane| lane.history.events.iter().cloned().collect())
                .unwrap_or_default(),
            rule: rule(code),
            explanation: String::new(),
            note: None,
            culprit: None,
        };
        finding.explanation = sentence(&finding, peer);
        finding
    }

    fn say(&mut self, finding: Finding) {
        *self
            .summary
            .findings
            .entry((finding.code, finding.state))
            .or_default() += 1;
        self.output.push_back(Output::Finding(Box::new(finding)));
    }

    fn consumer(&self, id: LaneId) -> Option<ProcId> {
        let peer = self.peers.get(&(id.hub, id.peer))?;
        match id.direction {
            Direction::ToPeer => peer.plugin,
            Direction::ToHost => peer.host,
        }
    }

    fn producer(&self, id: LaneId) -> Option<ProcId> {
        let peer = self.peers.get(&(id.hub, id.peer))?;
        match id.direction {
            Direction::ToPeer => peer.host,
            Direction::ToHost => peer.plugin,
        }
    }
}

fn of(rings: &crate::input::PeerRings, direction: Direction) -> Indexes {
    match direction {
        Direction::ToPeer => rings.to_peer,
        Direction::ToHost => rings.to_host,
    }
}

/// Puts what was observed into a finding.
fn evidence(finding: &mut Finding, seen: &LaneObservation) {
    finding.ring = Some(seen.after);
    finding.capacity = Some(seen.capacity);
    finding.doorbell_pending = match (seen.queued, seen.token) {
        (Some(queued), _) => Some(queued),
        (None, Some(token)) => Some(u32::from(token)),
        (None, None) => None,
    };
    if let Some(proc) = seen.consumer.proc {
        finding.threads.extend(
            seen.consumer
                .threads
                .iter()
                .map(|thread| (proc, thread.clone())),
        );
    }
}

/// What woke the consumer of a lane that had been stuck since `since`.
fn woken_by(lane: &Lane, since: Mono, until: Mono) -> String {
    let ring = lane
        .history
        .rings
        .iter()
        .find(|ring| ring.at > since && ring.at <= until);
    match ring {
        Some(ring) => format!("woken by a later doorbell from tid {} of pid {}", ring.tid.0, ring.proc.pid),
        None => "woken by something other than this lane's doorbell: a timeout, a signal or another lane".to_owned(),
    }
}

/// The rule that fires for a class.
fn rule(code: Code) -> &'static str {
    match code {
        Code::MissedWakeup => {
            "visible_head > tail, consumer asleep in a wait for fds, no token queued, producer past its ring call, unchanged for the grace"
        }
        Code::NotDraining => {
            "visible_head > tail, token queued, consumer asleep in a wait for fds, unchanged for the grace"
        }
        Code::ConsumerBlocked => {
            "visible_head > tail, consumer asleep in calls that no doorbell can end, unchanged for the grace"
        }
        Code::RingFull => {
            "len == capacity, producer waits for space, consumer blocked, unchanged for the grace"
        }
        Code::NeverEnqueued | Code::Unanswered => {
            "no progress for the time given by --expect-progress"
        }
        Code::SlotsStuck => "slots in flight that no ring entry refers to",
        Code::RingCorrupt => "indexes or descriptors that the protocol does not allow",
        Code::PeerDied => {
            "process gone while its peer entry is active, or with entries, slots or calls left"
        }
        Code::Starved => "woken and runnable, not run",
        Code::MemoryLimit => "memory limit reached",
    }
}
