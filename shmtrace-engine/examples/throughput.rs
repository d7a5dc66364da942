//! What the engine costs per event: healthy traffic of some peers on several CPUs, drained every 5 ms.
//!
//! `cargo run --release -p shmtrace-engine --example throughput -- [EVENTS] [PEERS]`

use std::time::{Duration, Instant};

use shmtrace_engine::{
    Config, Direction, Engine, HubId, LaneId, Mono, PeerId, ProcId, SocketInode, Tid,
    input::{Event, EventKind, Indexes, Input, PeerBinding, PeerRings, Sample, Topology},
};

const HUB: HubId = HubId(1);
const HOST: ProcId = ProcId { pid: 100, start: 1 };
/// Time between two events, ns: a million a second.
const APART: u64 = 1000;
/// Events of one drain.
const DRAIN: u64 = 5000;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u64| {
        arguments
            .next()
            .map_or(default, |word| word.parse().expect("a number"))
    };
    let events = number(10_000_000);
    let peers = number(16).clamp(1, 32) as u16;

    let mut engine = Engine::new(Config::default());
    engine.attached(Mono(0));
    engine.handle(Input::Topology(Topology::Hub {
        hub: HUB,
        path: String::new(),
    }));
    for peer in 0..peers {
        engine.handle(Input::Topology(Topology::Peer(binding(peer))));
    }
    let mut spent = Duration::ZERO;
    let mut sent = vec![0_u64; usize::from(peers)];
    let mut done = 0;
    let mut batch = Vec::with_capacity(DRAIN as usize);
    while done < events {
        batch.clear();
        for number in done..done + DRAIN {
            batch.push(event(number, &mut sent));
        }
        // As the buffers are read: one CPU after the other.
        batch.sort_by_key(|event: &Event| event.cpu);
        done += DRAIN;
        let now = Mono(done * APART);
        let begun = Instant::now();
        for event in batch.drain(..) {
            engine.handle(Input::Event(event));
        }
        for peer in 0..peers {
            let count = sent[usize::from(peer)];
            engine.handle(Input::Sample(Sample {
                at: now,
                lane: LaneId {
                    hub: HUB,
                    peer: PeerId(peer),
                    direction: Direction::ToPeer,
                },
                ring: Indexes {
                    head: count,
                    tail: count,
                },
                capacity: 256,
            }));
        }
        engine.advance(now, Mono(now.0.saturating_sub(20_000_000)));
        while engine.poll_output().is_some() {}
        spent += begun.elapsed();
    }
    println!(
        "{done} events of {peers} peers: {:.1} ns each; {} evicted",
        spent.as_secs_f64() * 1e9 / done as f64,
        engine.summary().evicted
    );
}

fn binding(peer: u16) -> PeerBinding {
    PeerBinding {
        hub: HUB,
        peer: PeerId(peer),
        name: String::new(),
        plugin: Some(plugin(peer)),
        host: Some(HOST),
        host_end: Some(SocketInode(1000 + u64::from(peer))),
        plugin_end: Some(SocketInode(2000 + u64::from(peer))),
        flags: 1,
        certain: true,
    }
}

fn plugin(peer: u16) -> ProcId {
    ProcId {
        pid: 200 + u32::from(peer),
        start: 1,
    }
}

/// Ring, wake, take and sleep in turn, of one peer after the other.
fn event(number: u64, sent: &mut [u64]) -> Event {
    let peer = (number / 4 % sent.len() as u64) as u16;
    let count = &mut sent[usize::from(peer)];
    *count += u64::from(number.is_multiple_of(4));
    let both = |head, tail| {
        Some(PeerRings {
            hub: HUB,
            peer: PeerId(peer),
            to_peer: Some(Indexes { head, tail }),
            to_host: None,
        })
    };
    let (proc, cpu, kind) = match number % 4 {
        0 => {
            let (end, syscall, result) = (SocketInode(1000 + u64::from(peer)), None, 1);
            let rings = both(*count, *count - 1);
            let kind = EventKind::Ring {
                end,
                syscall,
                result,
                rings,
            };
            (HOST, 0, kind)
        }
        1 => {
            let (syscall, result) = (232, 1);
            (
                plugin(peer),
                1 + peer % 3,
                EventKind::Wake { syscall, result },
            )
        }
        2 => {
            let (end, syscall, result) = (SocketInode(2000 + u64::from(peer)), None, 1);
            let rings = both(*count, *count - 1);
            let kind = EventKind::Take {
                end,
                syscall,
                result,
                rings,
            };
            (plugin(peer), 1 + peer % 3, kind)
        }
        _ => {
            let kind = EventKind::Sleep {
                syscall: Some(232),
                arg: 3,
                for_fds: true,
                rings: both(*count, *count),
            };
            (plugin(peer), 1 + peer % 3, kind)
        }
    };
    Event {
        at: Mono(number * APART),
        cpu,
        proc,
        tid: Tid(proc.pid),
        kind,
    }
}
