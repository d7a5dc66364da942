//! What one event costs the engine: healthy traffic of many peers on several CPUs, a million events a second.
//!
//! `cargo run --release -p shmtrace-engine --example throughput [EVENTS] [PEERS] [CPUS]`
#![expect(clippy::print_stdout, reason = "a measurement is printed")]

use std::io;

use shmtrace_engine::{
    Config, Direction, Engine, HubId, LaneId, Mono, Output, PeerId, ProcId, SocketInode, Tid,
    input::{Event, EventKind, Indexes, Input, PeerBinding, PeerRings, Sample, Topology},
};

const HUB: HubId = HubId(1);
const HOST: ProcId = ProcId { pid: 1, start: 1 };
/// Between two events of all CPUs together, ns.
const APART: u64 = 1_000;
/// Between two drains, ns.
const TICK: u64 = 5_000_000;
/// The engine is told that events are complete up to this long ago, ns.
const WATERMARK: u64 = 20_000_000;

fn main() -> io::Result<()> {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|word| word.parse::<u64>().ok());
    let events = numbers.next().unwrap_or(10_000_000);
    let peers = numbers.next().unwrap_or(31).clamp(1, 32) as u16;
    let cpus = numbers.next().unwrap_or(4).clamp(1, 1024) as u16;

    let load = Load {
        events,
        peers,
        cpus,
    };
    let made = load.cost_of(|_, _, _| {})?;
    let mut engine = load.engine();
    let mut findings = 0_u64;
    let judged = load.cost_of(|now, events, samples| {
        events.for_each(|event| engine.handle(Input::Event(event)));
        samples.for_each(|sample| engine.handle(Input::Sample(sample)));
        engine.advance(Mono(now), Mono(now.saturating_sub(WATERMARK)));
        while let Some(output) = engine.poll_output() {
            findings += u64::from(matches!(output, Output::Finding(_)));
        }
    })?;
    println!(
        "{events} events of {peers} peers on {cpus} CPUs: {:.1} ns of CPU time for each, {findings} findings, {} forgotten",
        judged.saturating_sub(made) as f64 / events as f64,
        engine.summary().evicted
    );
    Ok(())
}

struct Load {
    events: u64,
    peers: u16,
    cpus: u16,
}

impl Load {
    fn engine(&self) -> Engine {
        let mut engine = Engine::new(Config::default());
        engine.attached(Mono(0));
        let path = "hub".to_owned();
        engine.handle(Input::Topology(Topology::Hub { hub: HUB, path }));
        for peer in 0..self.peers {
            engine.handle(Input::Topology(Topology::Peer(binding(peer))));
        }
        engine
    }

    /// Makes the events of each tick and hands them over; gives back the CPU time of all that, ns.
    fn cost_of(
        &self,
        mut hand_over: impl FnMut(
            u64,
            &mut dyn Iterator<Item = Event>,
            &mut dyn Iterator<Item = Sample>,
        ),
    ) -> io::Result<u64> {
        let before = cpu_time()?;
        let mut heads = vec![0_u64; usize::from(self.peers)];
        let mut batch = Vec::new();
        let mut number = 0;
        while number < self.events {
            for _ in 0..TICK / APART {
                batch.push(event(number, self.peers, self.cpus, &mut heads));
                number += 1;
            }
            // As the buffers are read: one CPU after the other.
            batch.sort_by_key(|event| event.cpu);
            let now = number * APART;
            let mut samples =
                (0..self.peers).map(|peer| sample(peer, now, heads[usize::from(peer)]));
            hand_over(now, &mut batch.drain(..), &mut samples);
        }
        Ok(cpu_time()? - before)
    }
}

/// Time that this process had on a CPU so far, ns: other load on the machine does not count.
fn cpu_time() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/schedstat")?;
    let time = text.split(' ').next().and_then(|word| word.parse().ok());
    time.ok_or_else(|| io::Error::other("/proc/self/schedstat has no time"))
}

fn plugin(peer: u16) -> ProcId {
    let pid = 100 + u32::from(peer);
    ProcId { pid, start: 1 }
}

fn ends(peer: u16) -> (SocketInode, SocketInode) {
    let first = 1000 + 2 * u64::from(peer);
    (SocketInode(first), SocketInode(first + 1))
}

fn binding(peer: u16) -> PeerBinding {
    let (host_end, plugin_end) = ends(peer);
    PeerBinding {
        hub: HUB,
        peer: PeerId(peer),
        name: format!("plugin-{peer}"),
        plugin: Some(plugin(peer)),
        host: Some(HOST),
        host_end: Some(host_end),
        plugin_end: Some(plugin_end),
        flags: 1,
        certain: true,
    }
}

/// The next event: each peer in turn is rung, woken, takes its token and sleeps.
fn event(number: u64, peers: u16, cpus: u16, heads: &mut [u64]) -> Event {
    let peer = ((number / 4) % u64::from(peers)) as u16;
    let head = &mut heads[usize::from(peer)];
    let (host_end, plugin_end) = ends(peer);
    let step = number % 4;
    *head += u64::from(step == 0);
    let rings = |tail| {
        let to_peer = Indexes { head: *head, tail };
        let to_host = Indexes::default();
        Some(PeerRings {
            hub: HUB,
            peer: PeerId(peer),
            to_peer,
            to_host,
        })
    };
    let kind = match step {
        0 => EventKind::Ring {
            end: host_end,
            syscall: 44,
            result: 1,
            rings: rings(*head - 1),
        },
        1 => EventKind::Wake {
            syscall: 232,
            result: 1,
        },
        2 => EventKind::Take {
            end: plugin_end,
            syscall: 45,
            result: 1,
            rings: rings(*head - 1),
        },
        _ => EventKind::Sleep {
            syscall: Some(232),
            arg: 3,
            rings: rings(*head),
        },
    };
    let proc = if step == 0 { HOST } else { plugin(peer) };
    Event {
        at: Mono(number * APART),
        cpu: if step == 0 { 0 } else { peer % cpus },
        proc,
        tid: Tid(proc.pid),
        kind,
    }
}

fn sample(peer: u16, now: u64, head: u64) -> Sample {
    let direction = Direction::ToPeer;
    Sample {
        at: Mono(now),
        lane: LaneId {
            hub: HUB,
            peer: PeerId(peer),
            direction,
        },
        ring: Indexes { head, tail: head },
        capacity: 256,
    }
}
