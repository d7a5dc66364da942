//! Whether a hub holds together: rings, free lists, and the slots that waiting descriptors refer to.
//!
//! A living hub changes while it is read, so a contradiction counts only if several looks show the very same one.

use std::{collections::BTreeMap, time::Duration};

use shm_transport::layout::slot;
use shmtrace_engine::{Direction, PeerId};

use super::{Descriptor, HubReader, SlotScan};

/// Looks that must all show a contradiction.
const LOOKS: usize = 3;
/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(if cfg!(fuzzing) { 0 } else { 2 });

/// What does not hold together, in words, in the order of the file.
pub fn check(reader: &HubReader) -> Vec<String> {
    let mut problems = look(reader);
    for _ in 1..LOOKS {
        if problems.is_empty() {
            break;
        }
        std::thread::sleep(PAUSE);
        let again = look(reader);
        problems.retain(|problem| again.contains(problem));
    }
    problems
}

/// The descriptors that wait in a lane, with their indexes. Empty if the indexes are crossed.
pub fn waiting_descriptors(
    reader: &HubReader,
    peer: PeerId,
    direction: Direction,
) -> Vec<(u64, Descriptor)> {
    let glance = reader.glance();
    let Some(ring) = glance.ring(peer, direction) else {
        return Vec::new();
    };
    reader.descriptors(peer, direction, ring.indexes.tail, ring.indexes.head)
}

fn look(reader: &HubReader) -> Vec<String> {
    let mut problems = Vec::new();
    let scan = reader.scan_slots();
    header(reader, &mut problems);
    rings(reader, &mut problems);
    for class in &scan.classes {
        problems.extend(
            class
                .problems
                .iter()
                .map(|problem| format!("size class {}: {problem}", class.class)),
        );
    }
    references(reader, &scan, &mut problems);
    problems
}

fn header(reader: &HubReader, problems: &mut Vec<String>) {
    let Some(header) = reader.header() else {
        problems.push("the header is gone".into());
        return;
    };
    let size = reader.size();
    if header.current_size > size {
        problems.push(format!(
            "the header says that {} bytes are in use, the file has {size}",
            header.current_size
        ));
    }
    if header.peer_id_counter < header.active_peers {
        problems.push(format!(
            "the header says that {} peers are active, and only {} ids were given out",
            header.active_peers, header.peer_id_counter
        ));
    }
}

fn rings(reader: &HubReader, problems: &mut Vec<String>) {
    let glance = reader.glance();
    let capacity = reader.geometry().ring_capacity;
    for id in reader.peers() {
        let Some(entry) = glance.peer_entry(id) else {
            problems.push(format!("peer {}: its entry is not in the file", id.0));
            continue;
        };
        if entry.is_used() && entry.stated_id != id.0 {
            problems.push(format!(
                "peer {}: its entry says that it is peer {}",
                id.0, entry.stated_id
            ));
        }
        for (direction, name, says) in [
            (Direction::ToHost, "send ring", entry.send_ring),
            (Direction::ToPeer, "recv ring", entry.recv_ring),
        ] {
            let mut problem = |what: String| problems.push(format!("peer {} {name}: {what}", id.0));
            if let Some(is) = reader.ring_offset(id, direction).filter(|is| *is != says) {
                problem(format!("its entry says offset {says}, the ring is at {is}"));
            }
            let Some(ring) = glance.ring(id, direction) else {
                problem("is not in the file".into());
                continue;
            };
            let (head, tail) = (ring.indexes.head, ring.indexes.tail);
            if tail > head {
                problem(format!("tail {tail} is beyond head {head}"));
            } else if head - tail > u64::from(capacity) {
                problem(format!("{} entries wait in {capacity} places", head - tail));
            }
            if ring.capacity != capacity {
                problem(format!(
                    "its header says capacity {}, the hub's {capacity}",
                    ring.capacity
                ));
            }
        }
    }
}

/// Each waiting descriptor refers to a slot in flight of its generation, and no two to the same.
fn references(reader: &HubReader, scan: &SlotScan, problems: &mut Vec<String>) {
    let mut referred: BTreeMap<(u8, u32), String> = BTreeMap::new();
    for id in reader.peers() {
        for (direction, name) in [
            (Direction::ToHost, "send ring"),
            (Direction::ToPeer, "recv ring"),
        ] {
            for (index, descriptor) in waiting_descriptors(reader, id, direction) {
                let who = format!("peer {} {name} entry {index}", id.0);
                let Some((class, number)) = descriptor.slot() else {
                    continue;
                };
                let slots = scan.classes.get(usize::from(class));
                if let Some(problem) = refers_badly(slots, number, &descriptor) {
                    problems.push(format!(
                        "{who}: refers to slot {number} of class {class}, {problem}"
                    ));
                }
                if let Some(other) = referred.insert((class, number), who.clone()) {
                    problems.push(format!(
                        "{who}: refers to slot {number} of class {class}, as {other} does"
                    ));
                }
            }
        }
    }
}

fn refers_badly(
    class: Option<&super::ClassSlots>,
    number: u32,
    descriptor: &Descriptor,
) -> Option<String> {
    let Some((class, slot)) = class.and_then(|class| Some((class, class.slot(number)?))) else {
        return Some("which does not exist".into());
    };
    let end = u64::from(descriptor.payload_offset) + u64::from(descriptor.payload_len);
    if slot.generation != descriptor.payload_generation {
        Some(format!(
            "generation {}; it has generation {}",
            descriptor.payload_generation, slot.generation
        ))
    } else if slot.state != slot::STATE_IN_FLIGHT {
        Some(format!("which is in state {}", slot.state))
    } else if end > u64::from(class.slot_size) {
        Some(format!("up to byte {end}; it has {}", class.slot_size))
    } else {
        None
    }
}
