//! A new hub's headers, tables and free lists.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::Geometry;
use crate::error::HubError;
use crate::layout::{self, SlotFields, class, extent, hub, peer, ring, slot};
use crate::map::Mapping;

/// Slot size and slots of each class; the numbers of slots are powers of two.
pub(super) type Classes = [(u32, u32); class::COUNT];

/// Few and small, for what takes its time.
#[cfg(test)]
pub(super) const SMALL_CLASSES: Classes = [
    (1 << 10, 8),
    (4 << 10, 4),
    (8 << 10, 2),
    (16 << 10, 2),
    (32 << 10, 1),
];

/// Bytes of an extent.
pub(super) fn extent_size(slot_size: u32, slots: u32) -> usize {
    extent::HEADER_SIZE + slots as usize * (slot::META_SIZE + slot_size as usize)
}

/// Relaxed stores throughout: nobody has the file yet, and who opens it later is told so by the host in ways that
/// synchronize (a new process, a pipe).
fn put32(map: &Mapping, offset: usize, value: u32) -> Result<(), HubError> {
    map.at::<AtomicU32>("field", offset)?
        .store(value, Ordering::Relaxed);
    Ok(())
}

fn put64(map: &Mapping, offset: usize, value: u64) -> Result<(), HubError> {
    map.at::<AtomicU64>("field", offset)?
        .store(value, Ordering::Relaxed);
    Ok(())
}

/// Writes everything but the payloads of a hub that is all zeroes.
pub(super) fn write(
    map: &Mapping,
    geometry: &Geometry,
    fields: &SlotFields,
    classes: &Classes,
) -> Result<(), HubError> {
    write_header(map, geometry, geometry.file_size(classes))?;
    write_peers(map, geometry)?;
    write_classes(map, geometry.size_classes, fields, classes)
}

fn write_header(map: &Mapping, geometry: &Geometry, size: usize) -> Result<(), HubError> {
    put64(map, hub::MAGIC, u64::from_ne_bytes(layout::MAGIC))?;
    put32(map, hub::VERSION, layout::VERSION)?;
    map.at::<AtomicU16>("max_peers", hub::MAX_PEERS)?
        .store(geometry.max_peers, Ordering::Relaxed);
    put64(map, hub::CURRENT_SIZE, size as u64)?;
    put32(map, hub::EXTENT_COUNT, class::COUNT as u32)?;
    put32(map, hub::RING_CAPACITY, geometry.ring_capacity)?;
    put64(map, hub::PEER_TABLE_OFFSET, geometry.peer_table as u64)?;
    put64(map, hub::RING_REGION_OFFSET, geometry.ring_region as u64)?;
    put64(map, hub::SIZE_CLASS_OFFSET, geometry.size_classes as u64)?;
    put64(map, hub::EXTENT_REGION_OFFSET, geometry.extents as u64)
}

fn write_peers(map: &Mapping, geometry: &Geometry) -> Result<(), HubError> {
    for id in 0..geometry.max_peers {
        let entry = geometry.peer_table + usize::from(id) * peer::SIZE;
        let (send, recv) = (geometry.ring_offset(id, 0), geometry.ring_offset(id, 1));
        put64(map, entry + peer::SEND_RING_OFFSET, send as u64)?;
        put64(map, entry + peer::RECV_RING_OFFSET, recv as u64)?;
        put32(map, send + ring::CAPACITY, geometry.ring_capacity)?;
        put32(map, recv + ring::CAPACITY, geometry.ring_capacity)?;
    }
    Ok(())
}

fn write_classes(
    map: &Mapping,
    headers: usize,
    at: &SlotFields,
    classes: &Classes,
) -> Result<(), HubError> {
    let mut start = headers + class::COUNT * class::SIZE;
    for (number, (slot_size, slots)) in classes.iter().copied().enumerate() {
        let header = headers + number * class::SIZE;
        put32(map, header + class::SLOT_SIZE, slot_size)?;
        // Shift, number of extents and padding share a word; the counts are powers of two.
        let mut shift = [slots.ilog2() as u8, 0, 0, 0];
        if *at == SlotFields::RAPACE_05 {
            put32(map, header + 4, slots)?;
        } else {
            shift[1] = 1;
        }
        put32(
            map,
            header + at.extent_slot_shift,
            u32::from_ne_bytes(shift),
        )?;
        put32(map, header + at.total_slots, slots)?;
        // The first slot is on top, as if all had been pushed once.
        put64(map, header + at.free_head, 1 << 32)?;
        put64(map, header + class::EXTENT_OFFSETS, start as u64)?;
        write_extent(map, start, (number as u8, slot_size, slots), at)?;
        start += extent_size(slot_size, slots);
    }
    Ok(())
}

fn write_extent(
    map: &Mapping,
    start: usize,
    (class, slot_size, slots): (u8, u32, u32),
    at: &SlotFields,
) -> Result<(), HubError> {
    let data = extent::HEADER_SIZE as u32 + slots * slot::META_SIZE as u32;
    put32(
        map,
        start + extent::SIZE_CLASS,
        u32::from_ne_bytes([class, 0, 0, 0]),
    )?;
    if *at == SlotFields::RAPACE_05 {
        put32(map, start + 12, slot_size)?;
    }
    put32(map, start + at.slot_count, slots)?;
    put32(map, start + at.meta_offset, extent::HEADER_SIZE as u32)?;
    put32(map, start + at.data_offset, data)?;
    for index in 0..slots {
        let meta = start + extent::HEADER_SIZE + index as usize * slot::META_SIZE;
        let next = if index + 1 < slots {
            index + 1
        } else {
            class::NO_SLOT
        };
        put32(map, meta + slot::NEXT_FREE, next)?;
        put32(map, meta + slot::OWNER_PEER, slot::OWNER_NONE)?;
    }
    Ok(())
}
