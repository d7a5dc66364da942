//! One lane: ring, threads of both sides, doorbell queue, the threads' run counts again, ring again.

use shmtrace_engine::{
    Direction, HubId, LaneId, ProcId, SocketInode,
    input::{Indexes, LaneObservation, ProcessObservation, WaitsFor},
};

use super::mono_now;
use crate::{
    discover::{Discovery, Hub},
    process::Doorbells,
    sock::{Look, pending_through_copy},
};

/// Bytes of kernel memory that one datagram of one byte occupies on the sender's side: 768 on all kernels so far.
const DATAGRAM_MEMORY: u32 = 768;

/// Who takes part in a lane. Several processes where it is not known which one does.
#[derive(Debug, Default)]
struct Parts {
    consumers: Vec<ProcId>,
    producers: Vec<ProcId>,
    /// Where tokens for the consumer are queued.
    ends: Vec<SocketInode>,
    /// Where the producer sends from.
    producer_end: Option<SocketInode>,
}

/// See [`Observer::lane`](super::Observer::lane).
pub(super) fn observe(world: &mut Discovery, lane: LaneId) -> Option<LaneObservation> {
    let begun = mono_now();
    let hub = world.hub(lane.hub)?;
    let parts = parts(hub, lane)?;
    let mut missing = Vec::new();
    let before = ring(hub, lane);
    if before.is_none() {
        missing.push("the ring cannot be read: the hub file was cut short or replaced".to_owned());
    }
    let capacity = hub.reader().geometry().ring_capacity;
    let consumers = observe_processes(world, hub, &parts.consumers, &parts.ends);
    let producers = observe_processes(world, hub, &parts.producers, &parts.ends);
    let (mut token, queued) = tokens(world, lane.hub, &parts, &mut missing);
    if differ(&consumers) {
        missing.push(
            "it is not known which of several processes the consumer is, and they wait for different things".into(),
        );
        token = None;
    }
    let consumer = look_again(world, &parts.consumers, consumers);
    let mut producer = look_again(world, &parts.producers, producers);
    producer.has_end = has_end(world, &parts);
    for (observation, what) in [(&consumer, "consumer"), (&producer, "producer")] {
        if observation.proc.is_none() {
            missing.push(format!(
                "it is not known for certain which process is the {what}"
            ));
        }
    }
    let hub = world.hub(lane.hub)?;
    let after = ring(hub, lane);
    let hub_intact = before.is_some() && after.is_some() && hub.reader().is_intact();
    Some(LaneObservation {
        lane,
        begun,
        before: before.unwrap_or_default(),
        after: after.unwrap_or_default(),
        capacity,
        hub_intact,
        token,
        queued,
        consumer,
        producer,
        missing,
        failed_sends_unseen: false,
        finished: mono_now(),
    })
}

fn parts(hub: &Hub, lane: LaneId) -> Option<Parts> {
    let binding = hub.parts(lane.peer)?;
    let (plugins, (host_ends, plugin_ends)) = match binding.plugin {
        Some(plugin) => (vec![plugin], (Vec::new(), Vec::new())),
        // The ends that the peers without a process could have, if this is one of them.
        None => (hub.candidates().to_vec(), hub.loose_ends()),
    };
    let hosts: Vec<_> = hub.host().into_iter().collect();
    Some(match lane.direction {
        Direction::ToPeer => Parts {
            consumers: plugins,
            producers: hosts,
            ends: binding.plugin_end.map_or(plugin_ends, |end| vec![end]),
            producer_end: binding.host_end,
        },
        Direction::ToHost => Parts {
            consumers: hosts,
            producers: plugins,
            ends: binding.host_end.map_or(host_ends, |end| vec![end]),
            producer_end: binding.plugin_end,
        },
    })
}

fn ring(hub: &Hub, lane: LaneId) -> Option<Indexes> {
    hub.reader()
        .glance()
        .ring(lane.peer, lane.direction)
        .map(|ring| ring.indexes)
}

/// First look at the threads. A process that is gone is one without threads.
fn observe_processes(
    world: &Discovery,
    hub: &Hub,
    ids: &[ProcId],
    ends: &[SocketInode],
) -> Vec<ProcessObservation> {
    ids.iter()
        .map(|id| match world.process(*id) {
            Some(process) => {
                let hub = world.mappings(id.pid, hub);
                process.observe_threads(&Doorbells { ends, hub: &hub })
            }
            None => ProcessObservation {
                proc: Some(*id),
                ..ProcessObservation::default()
            },
        })
        .collect()
}

/// Whether some of the processes wait for fds and others do not: then it matters which of them is meant.
fn differ(processes: &[ProcessObservation]) -> bool {
    let listens = |process: &ProcessObservation| {
        process.threads.iter().any(|thread| {
            matches!(
                thread.waits_for,
                WaitsFor::Doorbell | WaitsFor::OtherFds | WaitsFor::SomeFds
            )
        })
    };
    let mut listening = processes.iter().map(listens);
    let first = listening.next();
    listening.any(|other| Some(other) != first)
}

/// Second look at their run counts; then several processes, of which it is not known which one it is, become one.
fn look_again(
    world: &Discovery,
    ids: &[ProcId],
    mut observations: Vec<ProcessObservation>,
) -> ProcessObservation {
    for (id, observation) in ids.iter().zip(&mut observations) {
        match world.process(*id) {
            Some(process) => process.see_whether_they_ran(observation),
            None => observation.alive = false,
        }
    }
    if let [_] = ids
        && let Some(only) = observations.pop()
    {
        return only;
    }
    let mut all = ProcessObservation::default();
    for one in observations {
        all.alive |= one.alive;
        all.threads.extend(one.threads);
    }
    all
}

/// Whether the producer still has its own end; `None` if producer or end are not known for certain.
fn has_end(world: &Discovery, parts: &Parts) -> Option<bool> {
    let ([producer], Some(end)) = (parts.producers.as_slice(), parts.producer_end) else {
        return None;
    };
    let process = world.process(*producer)?;
    process.holds(end, world.fd_of(*producer, end)).ok()
}

/// Whether a token is queued on one of the ends, and how many if that can be told.
fn tokens(
    world: &mut Discovery,
    hub: HubId,
    parts: &Parts,
    missing: &mut Vec<String>,
) -> (Option<bool>, Option<u32>) {
    if parts.ends.is_empty() {
        world.missed_doorbell(hub);
        missing.push("it is not known which socket is the doorbell".into());
        return (None, None);
    }
    let mut queued = Some(0_u32);
    for end in &parts.ends {
        match queued_on(world, parts, *end) {
            Ok(0) => {}
            Ok(number) => queued = queued.map(|sum| sum.saturating_add(number)),
            Err(problem) => {
                missing.push(problem);
                queued = None;
            }
        }
    }
    if parts.ends.len() > 1 && queued != Some(0) {
        missing.push("it is not known which of several sockets the doorbell is, and a signal waits at one of them".into());
        return (None, None);
    }
    (queued.map(|number| number > 0), queued)
}

/// Datagrams queued on one end: exact where the sender's side is seen, else 1 for "at least one".
fn queued_on(world: &mut Discovery, parts: &Parts, end: SocketInode) -> Result<u32, String> {
    match world.sockets_mut().look(end) {
        Look::Found(socket) => {
            let sender = socket
                .peer
                .map(|peer| world.sockets_mut().look(SocketInode(peer.into())));
            let unreceived = match sender {
                Some(Look::Found(sender)) => sender.unreceived / DATAGRAM_MEMORY,
                _ => 0,
            };
            // The queue itself decides whether there is one: the sender's memory is given back a moment later, and
            // the queue shows no empty datagram.
            let waiting = socket.receivable > 0;
            Ok(if waiting { unreceived.max(1) } else { 0 })
        }
        // It was seen when it was bound, so it is closed, and its queue is gone with it.
        Look::Absent => Ok(0),
        Look::Unavailable => {
            let owner = parts
                .consumers
                .iter()
                .find_map(|id| Some((world.process(*id)?, world.fd_of(*id, end)?)));
            let (process, fd) =
                owner.ok_or("the doorbell's queue cannot be seen: its fd is not known")?;
            let pending = pending_through_copy(process, fd)
                .map_err(|error| format!("the doorbell's queue cannot be seen: {error}"))?;
            Ok(u32::from(pending > 0))
        }
    }
}
