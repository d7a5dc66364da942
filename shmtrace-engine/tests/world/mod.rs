//! A small world that an engine watches: hub, rings, doorbells, processes with threads, and a daemon that samples, hands
//! in records (late, if it must) and answers every request from what is there.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "every test file uses another part of it"
)]

mod daemon;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use shmtrace_engine::{
    Cause, Code, Config, Direction, Engine, Finding, HubId, LaneId, Mono, PeerId, ProcId,
    SocketInode, State, Tid,
    input::{
        Event, EventKind, HubObservation, Indexes, Input, MemoryObservation, PeerBinding,
        PeerRings, Topology, WaitsFor,
    },
};

pub const MS: u64 = 1_000_000;
pub const US: u64 = 1_000;
pub const HUB: HubId = HubId(1);
pub const CAPACITY: u32 = 8;
/// Tokens that a doorbell's queue takes.
pub const QUEUE: u32 = 4;
pub const EAGAIN: i32 = -11;
pub const ECONNREFUSED: i32 = -111;
const SENDTO: u16 = 44;
const RECVFROM: u16 = 45;
const EPOLL_WAIT: u16 = 232;

/// The host's main thread.
pub const HOST: Tid = Tid(100);

/// Flags of a peer entry (`hub-format`).
const ACTIVE: u32 = 1;
const DEAD: u32 = 1 << 2;

/// The main thread of a plugin.
pub const fn plugin(peer: u16) -> Tid {
    Tid(200 + 100 * peer as u32)
}

pub const fn to_peer(peer: u16) -> LaneId {
    LaneId {
        hub: HUB,
        peer: PeerId(peer),
        direction: Direction::ToPeer,
    }
}

pub const fn to_host(peer: u16) -> LaneId {
    LaneId {
        hub: HUB,
        peer: PeerId(peer),
        direction: Direction::ToHost,
    }
}

pub fn proc_of(pid: u32) -> ProcId {
    ProcId {
        pid,
        start: u64::from(pid) + 7,
    }
}

/// A thread of the world.
#[derive(Debug, Clone)]
pub struct Thread {
    pub proc: ProcId,
    pub name: String,
    pub state: char,
    pub waits_for: WaitsFor,
    pub runs: u64,
    pub sleeps: u64,
    pub cpu_ns: u64,
    pub cpu: u16,
}

/// A lane of the world.
#[derive(Debug, Clone, Default)]
pub struct Ring {
    pub indexes: Indexes,
    pub tokens: u32,
}

/// What the daemon cannot see, and how late it sees the rest.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each one is a thing that may be hidden"
)]
#[derive(Debug, Clone, Default)]
pub struct Sight {
    /// No record is handed in.
    pub blind: bool,
    /// Sends on closed fds leave no record.
    pub failed_sends_unseen: bool,
    /// Producers have no fd of their ends.
    pub ends_closed: bool,
    /// Queues cannot be read.
    pub no_queues: bool,
    /// It is not known which process the plugin is.
    pub unknown_peer: bool,
    /// The hub file was replaced.
    pub hub_gone: bool,
    /// Records of this CPU are handed in late by so much.
    pub late: BTreeMap<u16, u64>,
    /// Clocks of this CPU are ahead by so much: records look later than they were.
    pub ahead: BTreeMap<u16, u64>,
    /// Of so many records in 256 one is dropped; the loss is told with the next drain.
    pub drops: u8,
    /// Observations are not answered.
    pub unanswered: bool,
}

/// See the file's description.
pub struct World {
    pub now: u64,
    pub engine: Engine,
    pub rings: BTreeMap<LaneId, Ring>,
    pub threads: BTreeMap<Tid, Thread>,
    pub dead: BTreeSet<ProcId>,
    pub sight: Sight,
    pub findings: Vec<Finding>,
    /// Requests so far.
    pub looks: u64,
    /// What hubs show besides their rings.
    pub hub: HubObservation,
    pub memory: Option<MemoryObservation>,
    /// The watermark stays behind the time by so much.
    pub watermark: u64,
    records: VecDeque<(u64, Event)>,
    dropped: u64,
    dice: u64,
    sampled: BTreeMap<LaneId, Indexes>,
    next_tick: u64,
    peers: u16,
}

impl World {
    /// A host with so many plugins, all asleep at their doorbells; traced from the start.
    pub fn new(peers: u16) -> Self {
        Self::with(peers, Config::default())
    }

    pub fn with(peers: u16, config: Config) -> Self {
        Self::begin(peers, config, None)
    }

    /// The same in a cgroup with a memory limit, in which things happened before the attach.
    pub fn under(peers: u16, memory: MemoryObservation) -> Self {
        Self::begin(peers, Config::default(), Some(memory))
    }

    fn begin(peers: u16, config: Config, memory: Option<MemoryObservation>) -> Self {
        let mut world = Self {
            now: 1000 * MS,
            engine: Engine::new(config),
            rings: BTreeMap::new(),
            threads: BTreeMap::new(),
            dead: BTreeSet::new(),
            sight: Sight::default(),
            findings: Vec::new(),
            looks: 0,
            hub: HubObservation {
                hub: HUB,
                at: Mono(0),
                classes: Vec::new(),
                orphans: Vec::new(),
                calls: Vec::new(),
                peers: Vec::new(),
                violations: Vec::new(),
                all_asleep: None,
            },
            memory,
            watermark: 20 * MS,
            records: VecDeque::new(),
            dropped: 0,
            dice: 1,
            sampled: BTreeMap::new(),
            next_tick: 0,
            peers,
        };
        world.engine.attached(Mono(world.now));
        world.tell(Input::Topology(Topology::Hub {
            hub: HUB,
            path: "/tmp/hub.shm".to_owned(),
        }));
        world.thread(HOST, 100, "host", 0);
        for peer in 0..peers {
            world.thread(plugin(peer), plugin(peer).0, "plugin", 1 + peer);
            world.rings.insert(to_peer(peer), Ring::default());
            world.rings.insert(to_host(peer), Ring::default());
            world.bind(peer);
        }
        world.wait(10 * MS);
        world
    }

    /// Tells the engine who a peer is.
    pub fn bind(&mut self, peer: u16) {
        self.bind_as(peer, !self.sight.unknown_peer, ACTIVE);
    }

    /// Tells the engine that nobody is known to be this peer.
    pub fn bind_nobody(&mut self, peer: u16) {
        self.bind_as(peer, false, ACTIVE);
    }

    /// The host has marked this peer dead, and nobody is known to be it.
    pub fn bury(&mut self, peer: u16) {
        self.bind_as(peer, false, DEAD);
    }

    fn bind_as(&mut self, peer: u16, known: bool, flags: u32) {
        self.tell(Input::Topology(Topology::Peer(PeerBinding {
            hub: HUB,
            peer: PeerId(peer),
            name: format!("plugin-{peer}"),
            plugin: known.then(|| proc_of(plugin(peer).0)),
            host: Some(proc_of(100)),
            host_end: Some(SocketInode(1000 + u64::from(peer))),
            plugin_end: Some(SocketInode(2000 + u64::from(peer))),
            flags,
            certain: known,
        })));
    }

    /// Adds a thread that sleeps at its process's doorbells.
    pub fn thread(&mut self, tid: Tid, pid: u32, name: &str, cpu: u16) {
        let thread = Thread {
            proc: proc_of(pid),
            name: name.to_owned(),
            state: 'S',
            waits_for: WaitsFor::Doorbell,
            runs: 1,
            sleeps: 1,
            cpu_ns: 1,
            cpu,
        };
        self.threads.insert(tid, thread);
    }

    /// The main thread of the lane's producer.
    #[expect(clippy::unused_self, reason = "the world is what knows it")]
    pub fn producer(&self, lane: LaneId) -> Tid {
        match lane.direction {
            Direction::ToPeer => HOST,
            Direction::ToHost => plugin(lane.peer.0),
        }
    }

    /// The main thread of the lane's consumer.
    #[expect(clippy::unused_self, reason = "the world is what knows it")]
    pub fn consumer(&self, lane: LaneId) -> Tid {
        match lane.direction {
            Direction::ToPeer => plugin(lane.peer.0),
            Direction::ToHost => HOST,
        }
    }

    pub fn ring_of(&mut self, lane: LaneId) -> &mut Ring {
        self.rings.get_mut(&lane).expect("a lane of this world")
    }

    /// The one ring that a signal or its taking shows.
    fn lane_seen(&self, lane: LaneId) -> PeerRings {
        let mut rings = self.seen_by(lane);
        match lane.direction {
            Direction::ToPeer => rings.to_host = None,
            Direction::ToHost => rings.to_peer = None,
        }
        rings
    }

    fn seen_by(&self, lane: LaneId) -> PeerRings {
        let of = |direction| self.rings[&LaneId { direction, ..lane }].indexes;
        PeerRings {
            hub: HUB,
            peer: lane.peer,
            to_peer: Some(of(Direction::ToPeer)),
            to_host: Some(of(Direction::ToHost)),
        }
    }

    /// A thread gets a CPU.
    pub fn run(&mut self, tid: Tid) {
        self.now += US;
        let thread = self.threads.get_mut(&tid).expect("a thread of this world");
        if thread.state != 'R' {
            thread.state = 'R';
            thread.waits_for = WaitsFor::Nothing;
            thread.runs += 1;
        }
        thread.cpu_ns += US;
    }

    /// A thread returns from `epoll_wait`.
    pub fn wake(&mut self, tid: Tid, result: i32) {
        self.run(tid);
        self.record(
            tid,
            EventKind::Wake {
                syscall: EPOLL_WAIT,
                result,
            },
        );
    }

    /// A thread goes to sleep.
    pub fn sleep(&mut self, tid: Tid, waits_for: WaitsFor) {
        self.now += US;
        let thread = self.threads.get_mut(&tid).expect("a thread of this world");
        if thread.state == 'S' {
            thread.waits_for = waits_for;
            return;
        }
        thread.state = 'S';
        thread.sleeps += 1;
        thread.waits_for = waits_for;
    }

    /// A thread goes to sleep at its doorbell, which leaves a record.
    pub fn idle(&mut self, tid: Tid, lane: LaneId) {
        self.sleep(tid, WaitsFor::Doorbell);
        let rings = Some(self.seen_by(lane));
        self.record(
            tid,
            EventKind::Sleep {
                syscall: Some(EPOLL_WAIT),
                arg: 3,
                for_fds: true,
                rings,
            },
        );
    }

    pub fn publish(&mut self, lane: LaneId) {
        self.now += US;
        self.ring_of(lane).indexes.head += 1;
    }

    pub fn consume(&mut self, lane: LaneId) {
        self.now += US;
        let indexes = &mut self.ring_of(lane).indexes;
        indexes.tail = indexes.head;
    }

    /// The producer's main thread rings.
    pub fn ring(&mut self, lane: LaneId) -> i32 {
        self.ring_by(lane, self.producer(lane))
    }

    pub fn ring_by(&mut self, lane: LaneId, tid: Tid) -> i32 {
        let ring = self.ring_of(lane);
        let result = if ring.tokens < QUEUE {
            ring.tokens += 1;
            1
        } else {
            EAGAIN
        };
        self.rang(lane, tid, result);
        result
    }

    /// A ring call returned so; the queue is as it was.
    pub fn rang(&mut self, lane: LaneId, tid: Tid, result: i32) {
        self.now += US;
        let end = match lane.direction {
            Direction::ToPeer => SocketInode(1000 + u64::from(lane.peer.0)),
            Direction::ToHost => SocketInode(2000 + u64::from(lane.peer.0)),
        };
        let rings = Some(self.lane_seen(lane));
        self.record(
            tid,
            EventKind::Ring {
                end,
                syscall: Some(SENDTO),
                result,
                rings,
            },
        );
    }

    /// A thread takes one token, if there is one.
    pub fn take(&mut self, lane: LaneId, tid: Tid) -> bool {
        self.now += US;
        let ring = self.ring_of(lane);
        if ring.tokens == 0 {
            return false;
        }
        ring.tokens -= 1;
        let end = match lane.direction {
            Direction::ToPeer => SocketInode(2000 + u64::from(lane.peer.0)),
            Direction::ToHost => SocketInode(1000 + u64::from(lane.peer.0)),
        };
        let rings = Some(self.lane_seen(lane));
        self.record(
            tid,
            EventKind::Take {
                end,
                syscall: Some(RECVFROM),
                result: 1,
                rings,
            },
        );
        true
    }

    /// The consumer's main thread is woken, drains the doorbell and the ring, and sleeps again.
    pub fn serve(&mut self, lane: LaneId) {
        let tid = self.consumer(lane);
        self.wake(tid, 1);
        while self.take(lane, tid) {}
        self.consume(lane);
        self.idle(tid, lane);
    }

    /// Publish and ring, as the producer should.
    pub fn send(&mut self, lane: LaneId) {
        let tid = self.producer(lane);
        self.run(tid);
        self.publish(lane);
        self.ring(lane);
        self.idle(tid, lane);
    }

    /// So many messages there and back.
    pub fn round_trips(&mut self, peer: u16, number: u32) {
        for _ in 0..number {
            self.send(to_peer(peer));
            self.serve(to_peer(peer));
            self.send(to_host(peer));
            self.serve(to_host(peer));
            self.wait(MS);
        }
    }

    pub fn kill(&mut self, tid: Tid) {
        let proc = self.threads[&tid].proc;
        self.threads.retain(|_, thread| thread.proc != proc);
        self.dead.insert(proc);
        let at = Mono(self.now);
        self.tell(Input::Topology(Topology::ProcessExited { proc, at }));
    }

    pub fn tell(&mut self, input: Input) {
        self.engine.handle(input);
    }

    /// Findings with this state.
    pub fn with_state(&self, state: State) -> Vec<&Finding> {
        self.findings
            .iter()
            .filter(|finding| finding.state == state)
            .collect()
    }

    /// Nothing was claimed; suspicions are no claim.
    pub fn assert_clean(&self) {
        let said: Vec<_> = self
            .findings
            .iter()
            .filter(|finding| finding.state != State::Suspect)
            .map(|finding| (finding.code, finding.cause, finding.state, &finding.note))
            .collect();
        assert!(said.is_empty(), "a healthy run raised {said:?}");
    }

    /// Exactly one finding was proven, and it is this one.
    #[track_caller]
    pub fn assert_missed(&self, lane: LaneId, code: Code, cause: Option<Cause>) -> &Finding {
        let missed = self.with_state(State::Missed);
        let said: Vec<_> = missed.iter().map(|f| (f.lane, f.code, f.cause)).collect();
        assert_eq!(
            said,
            [(Some(lane), code, cause)],
            "the findings that were proven"
        );
        missed[0]
    }
}
