//! The engine: routes inputs to lanes, asks for looks, and moves findings through their life.

mod damage;
mod findings;
mod inputs;
mod looks;
mod whole;

use std::collections::{BTreeMap, VecDeque};

use rustc_hash::FxHashMap;

use crate::{
    Config, HubId, LaneId, Mono, Output, PeerId, SocketInode, Summary,
    condition::Conditions,
    hubs::Hub,
    input::{Indexes, Input, MemoryObservation, PeerBinding, Sample},
    lane::{Lane, Suspicion},
    pending::Pending,
    servers::Servers,
};

/// How long after a stuck lane moved the records that tell why are waited for, ns.
const HEALED_WAIT: u64 = 30_000_000;
/// A look that was not answered for this long is asked for again, ns.
const LOOK_LOST: u64 = 500_000_000;

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
    peers: BTreeMap<(HubId, PeerId), Peer>,
    ends: FxHashMap<SocketInode, End>,
    servers: Servers,
    pending: Pending,
    sorted_until: Mono,
    /// Every event up to here was handed in.
    complete_until: Mono,
    healed: Vec<Healed>,
    hubs: BTreeMap<HubId, Hub>,
    conditions: Conditions,
    /// Rings that fell to where new ones begin, with what they were: a plugin's end may not be known yet.
    fallen: Vec<(Sample, Indexes)>,
    memory: BTreeMap<String, MemoryObservation>,
    memory_at: Mono,
    /// Up to when records were lost.
    lost_at: Mono,
    /// Looks at memory limits that were asked for.
    memory_looks: u64,
    output: VecDeque<Output>,
    next_id: u64,
    summary: Summary,
}

/// A peer that was described, and the coming and going of its plugins.
#[derive(Debug)]
struct Peer {
    binding: PeerBinding,
    /// When its processes and sockets were last settled.
    bound_at: Mono,
    /// When the plugin that is bound now was first known to have rung: its rings have begun by then.
    begun: Option<Begun>,
    /// It is without its plugin: its rings begin anew for the next one, which may be before it is known.
    vacant: Option<Vacancy>,
}

/// How a peer came to be without its plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vacancy {
    /// The hub has parted with it.
    Parted,
    /// It was seen to end.
    Ended,
}

/// The first ring of a plugin.
#[derive(Debug, Clone, Copy)]
struct Begun {
    /// When it was.
    at: Mono,
    /// When it was known.
    known: Mono,
}

/// Which part of which peer's doorbell a socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    /// Lane that is rung on it.
    rings: LaneId,
    /// Lane whose tokens are queued on it.
    takes: LaneId,
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
            ends: FxHashMap::default(),
            servers: Servers::default(),
            complete_until: Mono(0),
            pending: Pending::default(),
            sorted_until: Mono(0),
            healed: Vec::new(),
            hubs: BTreeMap::new(),
            conditions: Conditions::default(),
            fallen: Vec::new(),
            memory: BTreeMap::new(),
            memory_at: Mono(0),
            lost_at: Mono(0),
            memory_looks: 0,
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
            Input::Event(event) => self.event_seen(&event),
            Input::Loss(loss) => self.lost(loss),
            Input::Sample(sample) => self.sample(&sample),
            Input::Lane(seen) => self.observed(seen),
            Input::Hub(seen) => self.hub_observed(&seen),
            Input::Memory(seen) => self.memory_observed(&seen),
        }
    }

    fn binding(&self, peer: (HubId, PeerId)) -> Option<&PeerBinding> {
        Some(&self.peers.get(&peer)?.binding)
    }

    /// The time is `now`, and every event up to `complete_until` was handed in.
    pub fn advance(&mut self, now: Mono, complete_until: Mono) {
        self.now = self.now.max(now);
        self.complete_until = self.complete_until.max(complete_until);
        let mut pending = std::mem::take(&mut self.pending);
        while let Some(event) = pending.first_until(complete_until) {
            self.sorted_until = self.sorted_until.max(event.at);
            self.event(event);
            pending.remove_first();
        }
        self.pending = pending;
        self.settle_doubts();
        self.settle_fallen();
        // Before the lanes: what lies in a broken ring proves nothing else.
        self.look_at_hubs();
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
            .filter(|lane| lane.suspicion.is_some() || lane.has_come_to_a_stop())
            .map(|lane| match lane.asked_at {
                Some(asked) => asked.plus(LOOK_LOST),
                None => lane.look_at,
            });
        let healed = self.healed.iter().map(|healed| healed.at.plus(HEALED_WAIT));
        let hubs = self.hubs.values().map(|hub| match hub.asked_at {
            Some(asked) => asked.plus(LOOK_LOST),
            None => hub.look_at,
        });
        graces.chain(healed).chain(hubs).min()
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
