//! What an engine says of a state of the model: nothing moves any more from there on, as if all threads were kept from the
//! CPU, so the only question is whether the state is stuck.

use shmtrace_engine::{
    Config, Direction, Engine, Finding, HubId, LaneId, Mono, Output, PeerId, ProcId, Request,
    SocketInode, State, Tid,
    input::{
        Event, EventKind, Indexes, Input, LaneObservation, PeerBinding, PeerRings,
        ProcessObservation, Sample, ThreadObservation, Topology, WaitsFor,
    },
};

use crate::protocol::{CAPACITY, Producer, Record, Setup, Worker, World};

const MS: u64 = 1_000_000;
const HUB: HubId = HubId(1);
const LANE: LaneId = lane(1);
const HOST: ProcId = process(100);
const PLUGIN: ProcId = process(200);
const THIEF: ProcId = process(300);
/// Each step of a history takes so long.
const STEP: u64 = 20_000;
/// A state is watched for so long: the grace, and what looks need.
const WATCHED: u64 = 150 * MS;

const fn lane(peer: u16) -> LaneId {
    LaneId {
        hub: HUB,
        peer: PeerId(peer),
        direction: Direction::ToPeer,
    }
}

const fn process(pid: u32) -> ProcId {
    ProcId { pid, start: 1 }
}

/// An engine that watches one state, with or without the way that led there.
pub(crate) struct Watch {
    setup: Setup,
    engine: Engine,
    now: u64,
    /// How often each thread ran and slept: two producers, then two workers.
    runs: [u64; 4],
    sleeps: [u64; 4],
    said: Vec<Finding>,
}

impl Watch {
    /// The engine's findings, without what it only suspects, on a state that lasts.
    pub(crate) fn of(setup: Setup, way: &[(Record, World)], state: &World) -> Vec<Finding> {
        let mut watch = Self::new(setup);
        let mut before = World::start();
        for (record, after) in way {
            watch.step(*record, &before, after);
            before = *after;
        }
        let end = watch.now + WATCHED;
        while watch.now < end {
            for (id, ring) in [(LANE, ring_of(state)), (lane(2), Indexes::default())] {
                watch.sample(id, ring);
            }
            watch.advance(state);
            watch.now += 5 * MS;
        }
        watch.said.retain(|finding| finding.state != State::Suspect);
        watch.said
    }

    /// Some thread of the producer is runnable.
    pub(crate) fn sees_a_producer_run(setup: Setup, state: &World) -> bool {
        (0..setup.producers).any(|thread| !is_asleep(state, thread))
    }

    fn new(setup: Setup) -> Self {
        let mut watch = Self {
            setup,
            engine: Engine::new(Config::default()),
            now: 1000 * MS,
            runs: [1; 4],
            sleeps: [1; 4],
            said: Vec::new(),
        };
        watch.engine.attached(Mono(watch.now));
        let path = "/tmp/hub".to_owned();
        let hub = Topology::Hub { hub: HUB, path };
        watch.engine.handle(Input::Topology(hub));
        for peer in [1, 2] {
            watch
                .engine
                .handle(Input::Topology(Topology::Peer(PeerBinding {
                    hub: HUB,
                    peer: PeerId(peer),
                    name: format!("plugin-{peer}"),
                    plugin: Some(if peer == 1 { PLUGIN } else { THIEF }),
                    host: Some(HOST),
                    host_end: Some(SocketInode(10 * u64::from(peer))),
                    plugin_end: Some(SocketInode(10 * u64::from(peer) + 1)),
                    flags: 1,
                    certain: true,
                })));
            watch.sample(lane(peer), Indexes::default());
        }
        watch.now += 400 * MS;
        watch
    }

    fn sample(&mut self, lane: LaneId, ring: Indexes) {
        self.engine.handle(Input::Sample(Sample {
            at: Mono(self.now),
            lane,
            ring,
            capacity: u32::from(CAPACITY),
        }));
    }

    /// One step of the way: counters of threads, and the record.
    fn step(&mut self, record: Record, before: &World, after: &World) {
        self.now += STEP;
        for thread in 0..4 {
            match (is_asleep(before, thread), is_asleep(after, thread)) {
                (true, false) => self.runs[thread] += 1,
                (false, true) => self.sleeps[thread] += 1,
                _ => {}
            }
        }
        let rings = Some(PeerRings {
            hub: HUB,
            peer: PeerId(1),
            to_peer: Some(ring_of(after)),
            to_host: None,
        });
        let (proc, tid, kind) = match record {
            Record::None => return,
            Record::Ring { producer, result } => {
                let result = match result {
                    1 => 1,
                    0 => -11,
                    _ => -111,
                };
                let (end, syscall) = (SocketInode(10), None);
                let kind = EventKind::Ring {
                    end,
                    syscall,
                    result,
                    rings,
                };
                (HOST, tid(producer), kind)
            }
            Record::RingElsewhere { producer } => {
                let peer = PeerId(2);
                let to_peer = Some(Indexes::default());
                let rings = rings.map(|rings| PeerRings {
                    peer,
                    to_peer,
                    ..rings
                });
                let (end, syscall, result) = (SocketInode(20), None, 1);
                let kind = EventKind::Ring {
                    end,
                    syscall,
                    result,
                    rings,
                };
                (HOST, tid(producer), kind)
            }
            Record::Take { worker } => (PLUGIN, tid(2 + worker), take(rings)),
            // The thief does not map the hub.
            Record::Theft => (THIEF, Tid(300), take(None)),
            Record::Sleep { worker } => {
                let syscall = Some(232);
                let kind = EventKind::Sleep {
                    syscall,
                    arg: 5,
                    for_fds: true,
                    rings,
                };
                (PLUGIN, tid(2 + worker), kind)
            }
            Record::Wake { worker } => {
                let (syscall, result) = (232, 1);
                (PLUGIN, tid(2 + worker), EventKind::Wake { syscall, result })
            }
        };
        let at = Mono(self.now);
        let event = Event {
            at,
            cpu: (tid.0 % 4) as u16,
            proc,
            tid,
            kind,
        };
        self.engine.handle(Input::Event(event));
    }

    fn advance(&mut self, state: &World) {
        loop {
            let complete_until = Mono(self.now.saturating_sub(20 * MS));
            self.engine.advance(Mono(self.now), complete_until);
            let mut answered = false;
            while let Some(output) = self.engine.poll_output() {
                match output {
                    Output::Finding(finding) => self.said.push(*finding),
                    Output::Request(Request::ObserveLane(LANE) | Request::ObserveClosely(LANE)) => {
                        let seen = self.observe(state);
                        self.engine.handle(Input::Lane(Box::new(seen)));
                        answered = true;
                    }
                    Output::Request(_) => {}
                }
            }
            if !answered {
                return;
            }
        }
    }

    fn observe(&self, state: &World) -> LaneObservation {
        let threads = |from: usize, number| {
            (from..from + number)
                .map(|thread| ThreadObservation {
                    tid: tid(thread),
                    name: "runtime".to_owned(),
                    state: if is_asleep(state, thread) { 'S' } else { 'R' },
                    syscall: None,
                    wchan: None,
                    runs: Some(self.runs[thread]),
                    sleeps: Some(self.sleeps[thread]),
                    cpu_ns: None,
                    ran_meanwhile: false,
                    waits_for: waits_for(state, thread),
                    stack: None,
                })
                .collect()
        };
        let process = |proc, threads| ProcessObservation {
            proc: Some(proc),
            alive: true,
            has_end: None,
            threads,
        };
        LaneObservation {
            lane: LANE,
            begun: Mono(self.now),
            finished: Mono(self.now),
            before: ring_of(state),
            after: ring_of(state),
            capacity: u32::from(CAPACITY),
            hub_intact: true,
            token: Some(state.tokens > 0),
            queued: Some(u32::from(state.tokens)),
            consumer: process(PLUGIN, threads(2, self.setup.workers)),
            producer: process(HOST, threads(0, self.setup.producers)),
            missing: Vec::new(),
            failed_sends_unseen: false,
        }
    }
}

fn tid(thread: usize) -> Tid {
    Tid(if thread < 2 { 100 } else { 200 } + thread as u32)
}

fn take(rings: Option<PeerRings>) -> EventKind {
    let (end, syscall, result) = (SocketInode(11), None, 1);
    EventKind::Take {
        end,
        syscall,
        result,
        rings,
    }
}

fn ring_of(state: &World) -> Indexes {
    Indexes {
        head: u64::from(state.head),
        tail: u64::from(state.tail),
    }
}

/// As the kernel has it: a thread whose wakeup was delivered is runnable.
fn is_asleep(state: &World, thread: usize) -> bool {
    if thread >= 2 {
        return match state.workers[thread - 2] {
            Worker::Polling => !state.edge,
            Worker::Parked | Worker::Blocked => true,
            _ => false,
        };
    }
    let others_publish = |producer: &Producer| matches!(producer, Producer::Publishing { .. });
    match state.producers[thread] {
        Producer::Idle => true,
        Producer::Locking => state.producers.iter().any(others_publish),
        Producer::Publishing { .. } => state.len() >= CAPACITY,
        _ => false,
    }
}

fn waits_for(state: &World, thread: usize) -> WaitsFor {
    if !is_asleep(state, thread) {
        return WaitsFor::Nothing;
    }
    if thread < 2 {
        return match state.producers[thread] {
            Producer::Publishing { .. } => WaitsFor::HubFutex(300),
            _ => WaitsFor::Futex,
        };
    }
    match state.workers[thread - 2] {
        Worker::Polling => WaitsFor::Doorbell,
        Worker::Blocked => WaitsFor::Other,
        _ => WaitsFor::Futex,
    }
}
