//! A hub as a whole: slots, then rings, then peers and whether everybody sleeps.

use shm_transport::layout::slot;
use shmtrace_engine::{
    Direction, LaneId, Tid,
    input::{HubObservation, PeerEntryObservation, SlotObservation, Violation},
};

use super::{calls::CallsSeen, mono_now};
use crate::{
    discover::{Discovery, Hub},
    hub::{HubReader, SlotScan},
    process::Process,
};

/// Scans of which all must show a contradiction in the free lists before it is reported.
const SCANS: usize = 3;

/// See [`Observer::hub`](super::Observer::hub) and [`Observer::sparing_threads`](super::Observer::sparing_threads).
pub(super) fn observe(
    world: &Discovery,
    hub: &Hub,
    seen: &mut CallsSeen,
    spare_threads: bool,
) -> HubObservation {
    let at = mono_now();
    let scan = hub.reader().scan_slots();
    // Rings after slots: a slot that is sent between the two is referred to when the rings are read.
    let calls = seen.look(hub);
    let mut orphans: Vec<_> = scan
        .classes
        .iter()
        .flat_map(|class| class.slots.iter().map(move |slot| (class.class, slot)))
        .filter(|(_, slot)| slot.state == slot::STATE_IN_FLIGHT)
        .filter(|(class, slot)| {
            !calls
                .referred
                .contains(&(*class, slot.index, slot.generation))
        })
        .map(|(class, slot)| SlotObservation {
            class,
            index: slot.index,
            generation: slot.generation,
            owner: slot.owner,
        })
        .collect();
    orphans.sort_unstable();
    let mut violations = calls.violations;
    violations.extend(misplaced_rings(hub));
    // A hub without a single peer may be in the making: its free lists are strung together only after it was mapped. The
    // entries were read before the scan, so a hub that has one was complete by then.
    if !hub.entries().is_empty() {
        violations.extend(lasting_problems(hub.reader(), &scan));
    }
    let classes: Vec<_> = scan
        .classes
        .iter()
        .map(crate::hub::ClassSlots::observation)
        .collect();
    let in_doubt = !orphans.is_empty() || classes.iter().any(|class| class.free == 0);
    let look = in_doubt || !spare_threads;
    HubObservation {
        hub: hub.id(),
        at,
        classes,
        orphans,
        calls: calls.descriptors,
        peers: peers(world, hub),
        violations,
        all_asleep: look.then(|| all_asleep(world, hub)).flatten(),
    }
}

/// Used entries whose ring offsets are not where the rings are.
fn misplaced_rings(hub: &Hub) -> Vec<Violation> {
    let mut violations = Vec::new();
    for entry in hub.entries() {
        for (direction, says) in [
            (Direction::ToHost, entry.send_ring),
            (Direction::ToPeer, entry.recv_ring),
        ] {
            let is = hub.reader().ring_offset(entry.id, direction);
            if is.is_some_and(|is| is != says) {
                violations.push(Violation {
                    lane: Some(LaneId {
                        hub: hub.id(),
                        peer: entry.id,
                        direction,
                    }),
                    what: format!(
                        "the peer entry says that the ring is at offset {says}, it is at {}",
                        is.unwrap_or(0)
                    ),
                });
            }
        }
    }
    violations
}

/// Contradictions in slots that several scans show alike: a single one may have met a thread between two steps.
fn lasting_problems(reader: &HubReader, first: &SlotScan) -> Vec<Violation> {
    let mut problems = words(first);
    for _ in 1..SCANS {
        if problems.is_empty() {
            return Vec::new();
        }
        std::thread::sleep(std::time::Duration::from_micros(200));
        let again = words(&reader.scan_slots());
        problems.retain(|problem| again.contains(problem));
    }
    problems
        .into_iter()
        .map(|what| Violation { lane: None, what })
        .collect()
}

fn words(scan: &SlotScan) -> Vec<String> {
    scan.classes
        .iter()
        .flat_map(|class| {
            class
                .problems
                .iter()
                .map(move |problem| format!("size class {}: {problem}", class.class))
        })
        .collect()
}

fn peers(world: &Discovery, hub: &Hub) -> Vec<PeerEntryObservation> {
    // Read anew: the heartbeat moves all the time.
    let glance = hub.reader().glance();
    hub.entries()
        .iter()
        .map(|entry| {
            let entry = glance.peer_entry(entry.id).unwrap_or(*entry);
            let plugin = hub.parts(entry.id).and_then(|parts| parts.plugin);
            PeerEntryObservation {
                peer: entry.id,
                flags: entry.flags,
                last_seen: entry.last_seen,
                alive: plugin.map(|id| world.process(id).is_some_and(Process::is_alive)),
            }
        })
        .collect()
}

/// Every thread of every process that maps the hub sleeps, and slept from the first to the last look at any of them.
/// `None` if some could not be seen.
fn all_asleep(world: &Discovery, hub: &Hub) -> Option<bool> {
    let mut buffer = Vec::with_capacity(512);
    let mut seen: Vec<(&Process, Tid, u64)> = Vec::new();
    for pid in hub.participants() {
        let Some(process) = world.proc_id(*pid).and_then(|id| world.process(id)) else {
            continue;
        };
        for tid in process.tids().ok()? {
            let Some((runs, state)) = process.runs_and_state(tid, &mut buffer) else {
                return Some(false);
            };
            if state != 'S' {
                return Some(false);
            }
            seen.push((process, tid, runs?));
        }
    }
    let still = seen
        .iter()
        .all(|(process, tid, runs)| process.runs(*tid, &mut buffer) == Some(*runs));
    Some(still && !seen.is_empty())
}
