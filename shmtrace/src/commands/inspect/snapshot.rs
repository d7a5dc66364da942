//! What `inspect` shows, as data: the same for people and for `--json`.

use serde::Serialize;
use shm_transport::layout::{desc, peer, slot};
use shmtrace_engine::{Direction, PeerId};

use crate::{
    discover::Hub,
    hub::{
        ClassSlots, Descriptor, Glance, Header, HubReader, PeerEntry, check, waiting_descriptors,
    },
};

/// A hub.
#[derive(Debug, Serialize)]
pub(super) struct Snapshot {
    pub(super) path: String,
    pub(super) size: u64,
    pub(super) header: Option<HeaderShot>,
    pub(super) mapped_by: Vec<Mapper>,
    /// Processes that might map it and whose mappings may not be read.
    pub(super) hidden_users: usize,
    pub(super) host_pid: Option<u32>,
    pub(super) peers: Vec<PeerShot>,
    /// Entries of the peer table that were never given out.
    pub(super) free_entries: usize,
    pub(super) classes: Vec<ClassShot>,
    pub(super) violations: Vec<String>,
}

/// The header's fields.
#[derive(Debug, Serialize)]
pub(super) struct HeaderShot {
    pub(super) version: String,
    pub(super) flags: u32,
    pub(super) max_peers: u16,
    pub(super) active_peers: u16,
    pub(super) peer_id_counter: u16,
    pub(super) current_size: u64,
    pub(super) extent_count: u32,
    pub(super) ring_capacity: u32,
    pub(super) peer_table_offset: u64,
    pub(super) ring_region_offset: u64,
    pub(super) size_class_offset: u64,
    pub(super) extent_region_offset: u64,
}

/// A process that maps the hub.
#[derive(Debug, Serialize)]
pub(super) struct Mapper {
    pub(super) pid: u32,
    pub(super) name: String,
}

/// A used entry of the peer table with its rings.
#[derive(Debug, Serialize)]
pub(super) struct PeerShot {
    pub(super) id: u16,
    pub(super) name: Option<String>,
    pub(super) pid: Option<u32>,
    pub(super) flags: Vec<&'static str>,
    pub(super) heartbeats: u64,
    /// Nanoseconds since the last one; `None` = never.
    pub(super) heartbeat_age_ns: Option<u64>,
    pub(super) recv_ring: Option<RingShot>,
    pub(super) send_ring: Option<RingShot>,
}

/// A ring.
#[derive(Debug, Serialize)]
pub(super) struct RingShot {
    pub(super) offset: u64,
    pub(super) head: u64,
    pub(super) tail: u64,
    pub(super) len: u64,
    pub(super) capacity: u32,
    pub(super) waiting: Vec<DescriptorShot>,
}

/// A waiting descriptor.
#[derive(Debug, Serialize)]
pub(super) struct DescriptorShot {
    pub(super) index: u64,
    pub(super) msg_id: u64,
    pub(super) channel: u32,
    pub(super) method: u32,
    pub(super) flags: Vec<String>,
    pub(super) payload_len: u32,
    /// The payload, if it is inline.
    pub(super) inline: Option<Vec<u8>>,
    pub(super) slot: Option<SlotRef>,
    pub(super) credit_grant: u32,
    pub(super) deadline_ns: Option<u64>,
}

/// Where a payload is.
#[derive(Debug, Serialize)]
pub(super) struct SlotRef {
    pub(super) class: u8,
    pub(super) index: u32,
    pub(super) generation: u32,
    pub(super) offset: u32,
}

/// A size class.
#[derive(Debug, Serialize)]
pub(super) struct ClassShot {
    pub(super) class: u8,
    pub(super) slot_size: u32,
    pub(super) total: u32,
    pub(super) free: u32,
    pub(super) allocated: u32,
    pub(super) in_flight: u32,
    pub(super) extents: usize,
    /// Times that any slot of the class was allocated.
    pub(super) allocations: u64,
    /// Slots that are not free.
    pub(super) used: Vec<SlotShot>,
    /// One letter per slot: `.` free, `A` allocated, `F` in flight, `?` none of these.
    pub(super) map: String,
}

/// A slot that is not free.
#[derive(Debug, Serialize)]
pub(super) struct SlotShot {
    pub(super) index: u32,
    pub(super) state: &'static str,
    pub(super) generation: u32,
    /// `None` = nobody.
    pub(super) owner: Option<u32>,
    /// Allocations of the class's busiest slot since this one was allocated, at least: how old it is.
    pub(super) generations_behind: u32,
}

impl Snapshot {
    /// Reads everything. `now` is in ns since the Unix epoch; `problem` is what is known to be wrong already.
    pub(super) fn take(
        reader: &HubReader,
        hub: Option<&Hub>,
        now: u64,
        problem: Option<String>,
    ) -> Self {
        let mut violations: Vec<String> = problem.into_iter().collect();
        violations.extend(check(reader));
        let glance = reader.glance();
        let entries: Vec<PeerEntry> = reader
            .peers()
            .filter_map(|id| glance.peer_entry(id))
            .collect();
        Self {
            path: reader.path().to_owned(),
            size: reader.size(),
            header: reader.header().as_ref().map(HeaderShot::new),
            mapped_by: Vec::new(),
            hidden_users: 0,
            host_pid: hub.and_then(Hub::host).map(|host| host.pid),
            free_entries: entries.iter().filter(|entry| !entry.is_used()).count(),
            peers: entries
                .iter()
                .filter(|entry| entry.is_used())
                .map(|entry| PeerShot::take(reader, &glance, entry, hub, now))
                .collect(),
            classes: reader
                .scan_slots()
                .classes
                .iter()
                .map(ClassShot::new)
                .collect(),
            violations,
        }
    }
}

impl HeaderShot {
    pub(super) fn new(header: &Header) -> Self {
        let (major, minor) = header.version();
        Self {
            version: format!("{major}.{minor}"),
            flags: header.flags,
            max_peers: header.max_peers,
            active_peers: header.active_peers,
            peer_id_counter: header.peer_id_counter,
            current_size: header.current_size,
            extent_count: header.extent_count,
            ring_capacity: header.ring_capacity,
            peer_table_offset: header.peer_table,
            ring_region_offset: header.ring_region,
            size_class_offset: header.size_classes,
            extent_region_offset: header.extents,
        }
    }
}

impl PeerShot {
    fn take(
        reader: &HubReader,
        glance: &Glance<'_>,
        entry: &PeerEntry,
        hub: Option<&Hub>,
        now: u64,
    ) -> Self {
        let binding = hub
            .and_then(|hub| hub.binding(entry.id))
            .filter(|binding| binding.plugin.is_some());
        Self {
            id: entry.id.0,
            name: binding.map(|binding| binding.name.clone()),
            pid: binding
                .and_then(|binding| binding.plugin)
                .map(|plugin| plugin.pid),
            flags: peer_flags(entry.flags),
            heartbeats: entry.epoch,
            heartbeat_age_ns: (entry.last_seen != 0).then(|| now.saturating_sub(entry.last_seen)),
            recv_ring: RingShot::take(reader, glance, entry.id, Direction::ToPeer),
            send_ring: RingShot::take(reader, glance, entry.id, Direction::ToHost),
        }
    }
}

impl RingShot {
    fn take(
        reader: &HubReader,
        glance: &Glance<'_>,
        peer: PeerId,
        direction: Direction,
    ) -> Option<Self> {
        let ring = glance.ring(peer, direction)?;
        Some(Self {
            offset: reader.ring_offset(peer, direction)?,
            head: ring.indexes.head,
            tail: ring.indexes.tail,
            len: ring.indexes.len(),
            capacity: ring.capacity,
            waiting: waiting_descriptors(reader, peer, direction)
                .iter()
                .map(|(index, descriptor)| DescriptorShot::new(*index, descriptor))
                .collect(),
        })
    }
}

impl DescriptorShot {
    fn new(index: u64, descriptor: &Descriptor) -> Self {
        let slot = descriptor.slot().map(|(class, index)| SlotRef {
            class,
            index,
            generation: descriptor.payload_generation,
            offset: descriptor.payload_offset,
        });
        let inline = descriptor
            .inline
            .iter()
            .take(descriptor.payload_len as usize)
            .copied()
            .collect();
        Self {
            index,
            msg_id: descriptor.msg_id,
            channel: descriptor.channel,
            method: descriptor.method,
            flags: message_flags(descriptor.flags),
            payload_len: descriptor.payload_len,
            inline: slot.is_none().then_some(inline),
            slot,
            credit_grant: descriptor.credit_grant,
            deadline_ns: (descriptor.deadline_ns != u64::MAX).then_some(descriptor.deadline_ns),
        }
    }
}

impl ClassShot {
    fn new(class: &ClassSlots) -> Self {
        let counts = class.observation();
        let newest = class
            .slots
            .iter()
            .map(|slot| slot.generation)
            .max()
            .unwrap_or(0);
        Self {
            class: class.class,
            slot_size: counts.slot_size,
            total: counts.total,
            free: counts.free,
            allocated: counts.allocated,
            in_flight: counts.in_flight,
            extents: class.extents.len(),
            allocations: class
                .slots
                .iter()
                .map(|slot| u64::from(slot.generation))
                .sum(),
            used: class
                .slots
                .iter()
                .filter(|slot| slot.state != slot::STATE_FREE)
                .map(|slot| SlotShot {
                    index: slot.index,
                    state: state_name(slot.state),
                    generation: slot.generation,
                    owner: (slot.owner != slot::OWNER_NONE).then_some(slot.owner),
                    generations_behind: newest.saturating_sub(slot.generation),
                })
                .collect(),
            map: class
                .slots
                .iter()
                .map(|slot| state_letter(slot.state))
                .collect(),
        }
    }
}

/// Names of the bits of a peer entry's flags.
pub(crate) fn peer_flags(flags: u32) -> Vec<&'static str> {
    [
        (peer::FLAG_ACTIVE, "ACTIVE"),
        (peer::FLAG_DYING, "DYING"),
        (peer::FLAG_DEAD, "DEAD"),
        (peer::FLAG_RESERVED, "RESERVED"),
    ]
    .into_iter()
    .filter(|(bit, _)| flags & bit != 0)
    .map(|(_, name)| name)
    .collect()
}

/// Names of the bits of a descriptor's flags; bits without a name as a number.
fn message_flags(flags: u32) -> Vec<String> {
    let known = [
        (desc::FLAG_DATA, "DATA"),
        (desc::FLAG_CONTROL, "CONTROL"),
        (desc::FLAG_EOS, "EOS"),
        (desc::FLAG_CANCEL, "CANCEL"),
        (desc::FLAG_ERROR, "ERROR"),
        (desc::FLAG_HIGH_PRIORITY, "HIGH_PRIORITY"),
        (desc::FLAG_CREDITS, "CREDITS"),
        (desc::FLAG_METADATA_ONLY, "METADATA_ONLY"),
    ];
    let mut names: Vec<String> = known
        .iter()
        .filter(|(bit, _)| flags & bit != 0)
        .map(|(_, name)| (*name).to_owned())
        .collect();
    let rest = known.iter().fold(flags, |rest, (bit, _)| rest & !bit);
    if rest != 0 {
        names.push(format!("{rest:#x}"));
    }
    names
}

fn state_name(state: u32) -> &'static str {
    match state {
        slot::STATE_FREE => "free",
        slot::STATE_ALLOCATED => "allocated",
        slot::STATE_IN_FLIGHT => "in flight",
        _ => "invalid",
    }
}

fn state_letter(state: u32) -> char {
    match state {
        slot::STATE_FREE => '.',
        slot::STATE_ALLOCATED => 'A',
        slot::STATE_IN_FLIGHT => 'F',
        _ => '?',
    }
}
