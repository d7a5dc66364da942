//! What judging healthy traffic costs: the records of round trips as fast as they come on one processor.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use shmtrace_engine::{
    Config, Direction, Engine, HubId, LaneId, Mono, PeerId, ProcId, SocketInode, Tid,
    input::{Event, EventKind, Indexes, Input, PeerBinding, PeerRings, Sample, Topology},
};

const HUB: HubId = HubId(1);
const HOST: ProcId = ProcId { pid: 100, start: 1 };
/// From one record to the next, ns: 50,000 round trips a second.
const APART: u64 = 3_300;
/// From one look of the daemon to the next, ns.
const TICK: u64 = 5_000_000;
/// So late can a record be, ns: what is younger waits to be put in order.
const LATEST: u64 = 20_000_000;

/// A host that calls each of its plugins in turn.
struct World {
    engine: Engine,
    now: u64,
    peers: Vec<Indexes>,
}

impl World {
    fn new(peers: u16) -> Self {
        let mut engine = Engine::new(Config {
            grace: 50_000_000,
            expect_progress: None,
        });
        engine.attached(Mono(1));
        let path = "/dev/shm/hub".to_owned();
        engine.handle(Input::Topology(Topology::Hub { hub: HUB, path }));
        for peer in 0..peers {
            engine.handle(Input::Topology(Topology::Peer(PeerBinding {
                hub: HUB,
                peer: PeerId(peer),
                name: format!("plugin-{peer}"),
                plugin: Some(plugin(peer)),
                host: Some(HOST),
                host_end: Some(host_end(peer)),
                plugin_end: Some(plugin_end(peer)),
                flags: 1,
                certain: true,
            })));
        }
        Self {
            engine,
            now: 1,
            peers: vec![Indexes::default(); usize::from(peers)],
        }
    }

    /// The records of one tick, and the looks at its end.
    fn tick(&mut self) -> u64 {
        let end = self.now + TICK;
        let mut records = 0;
        while self.now < end {
            for peer in 0..self.peers.len() as u16 {
                records += self.round_trip(peer);
            }
        }
        for peer in 0..self.peers.len() as u16 {
            for direction in [Direction::ToPeer, Direction::ToHost] {
                self.engine.handle(Input::Sample(Sample {
                    at: Mono(self.now),
                    lane: LaneId {
                        hub: HUB,
                        peer: PeerId(peer),
                        direction,
                    },
                    ring: self.peers[usize::from(peer)],
                    capacity: 256,
                }));
            }
        }
        let complete = Mono(self.now.saturating_sub(LATEST));
        self.engine.advance(Mono(self.now), complete);
        while self.engine.poll_output().is_some() {}
        records
    }

    fn round_trip(&mut self, peer: u16) -> u64 {
        let before = self.peers[usize::from(peer)];
        let full = Indexes {
            head: before.head + 1,
            ..before
        };
        let empty = Indexes {
            tail: full.head,
            ..full
        };
        self.peers[usize::from(peer)] = empty;
        let rings = |to_peer, to_host| {
            Some(PeerRings {
                hub: HUB,
                peer: PeerId(peer),
                to_peer,
                to_host,
            })
        };
        let ring = |end, rings| EventKind::Ring {
            end,
            syscall: None,
            result: 1,
            rings,
        };
        let take = |end, rings| EventKind::Take {
            end,
            syscall: None,
            result: 1,
            rings,
        };
        let sleep = |rings| EventKind::Sleep {
            syscall: Some(232),
            arg: 4,
            for_fds: true,
            rings,
        };
        let plugin = plugin(peer);
        let events = [
            (HOST, ring(host_end(peer), rings(Some(full), None))),
            (HOST, sleep(rings(None, Some(before)))),
            (plugin, take(plugin_end(peer), rings(Some(full), None))),
            (plugin, ring(plugin_end(peer), rings(None, Some(full)))),
            (plugin, sleep(rings(Some(empty), None))),
            (HOST, take(host_end(peer), rings(None, Some(full)))),
        ];
        for (proc, kind) in events {
            self.now += APART;
            self.engine.event_seen(&Event {
                at: Mono(self.now),
                cpu: 0,
                proc,
                tid: Tid(proc.pid),
                kind,
            });
        }
        6
    }
}

fn plugin(peer: u16) -> ProcId {
    ProcId {
        pid: 200 + u32::from(peer),
        start: 2,
    }
}

fn host_end(peer: u16) -> SocketInode {
    SocketInode(1000 + 2 * u64::from(peer))
}

fn plugin_end(peer: u16) -> SocketInode {
    SocketInode(1001 + 2 * u64::from(peer))
}

fn healthy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("healthy traffic");
    for peers in [1, 8, 31] {
        let mut world = World::new(peers);
        // Histories are full.
        for _ in 0..100 {
            world.tick();
        }
        group.throughput(Throughput::Elements(world.tick()));
        group.bench_function(format!("{peers} peers"), |bench| {
            bench.iter(|| world.tick());
        });
    }
    group.finish();
}

criterion_group!(benches, healthy);
criterion_main!(benches);
