//! Synthetic hub files for tests, made from the layout's constants.

use std::{
    fs::File,
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use shm_transport::layout::{self, class, desc, extent, hub, peer, ring, slot};
use shmtrace_engine::{Direction, PeerId};

/// Peers of the file.
pub(crate) const PEERS: u16 = 4;
/// Ring capacity of the file.
pub(crate) const CAPACITY: u32 = 8;

/// A hub file in a folder of its own; small classes, so that it can be cut at every byte.
pub(crate) struct Fixture {
    folder: tempfile::TempDir,
    pub(crate) bytes: Vec<u8>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            bytes: hub_bytes(),
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("test-hub.shm")
    }

    /// Writes the bytes as the file.
    pub(crate) fn write(&self) -> PathBuf {
        self.write_as(&self.path())
    }

    fn write_as(&self, path: &Path) -> PathBuf {
        File::create(path).unwrap().write_all(&self.bytes).unwrap();
        path.to_owned()
    }

    /// Sets bytes here and in the file, if it exists.
    pub(crate) fn set(&mut self, offset: usize, value: &[u8]) {
        self.bytes[offset..offset + value.len()].copy_from_slice(value);
        if let Ok(file) = File::options().write(true).open(self.path()) {
            file.write_all_at(value, offset as u64).unwrap();
        }
    }

    /// Sets head and tail of a ring.
    pub(crate) fn set_ring(&mut self, peer: PeerId, direction: Direction, head: u64, tail: u64) {
        let at = ring_at(peer, direction);
        self.set(at + ring::VISIBLE_HEAD, &head.to_ne_bytes());
        self.set(at + ring::TAIL, &tail.to_ne_bytes());
    }
}

pub(crate) fn ring_at(peer: PeerId, direction: Direction) -> usize {
    let second = usize::from(direction == Direction::ToPeer);
    ring_region() + (usize::from(peer.0) * 2 + second) * ring::size(CAPACITY)
}

pub(crate) fn descriptor_at(peer: PeerId, direction: Direction, index: u64) -> usize {
    ring_at(peer, direction)
        + ring::HEADER_SIZE
        + (index as usize & (CAPACITY as usize - 1)) * desc::SIZE
}

fn ring_region() -> usize {
    hub::SIZE + usize::from(PEERS) * peer::SIZE
}

pub(crate) fn classes_at() -> usize {
    ring_region() + usize::from(PEERS) * 2 * ring::size(CAPACITY)
}

/// Slots per class in the fixture.
pub(crate) const SLOTS: u32 = 4;

/// File offset of a slot's metadata.
pub(crate) fn slot_at(number: usize, index: u32) -> usize {
    extent_at(number) + extent::HEADER_SIZE + index as usize * slot::META_SIZE
}

fn extent_at(number: usize) -> usize {
    let extent = extent::HEADER_SIZE + SLOTS as usize * slot::META_SIZE + SLOTS as usize * 64;
    classes_at() + class::COUNT * class::SIZE + number * extent
}

fn hub_bytes() -> Vec<u8> {
    let mut bytes = vec![0; extent_at(class::COUNT)];
    let size = bytes.len() as u64;
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(hub::MAGIC, &layout::MAGIC);
    put(hub::VERSION, &layout::VERSION.to_ne_bytes());
    put(hub::MAX_PEERS, &PEERS.to_ne_bytes());
    put(hub::CURRENT_SIZE, &size.to_ne_bytes());
    put(hub::EXTENT_COUNT, &(class::COUNT as u32).to_ne_bytes());
    put(hub::RING_CAPACITY, &CAPACITY.to_ne_bytes());
    put(hub::PEER_TABLE_OFFSET, &(hub::SIZE as u64).to_ne_bytes());
    put(
        hub::RING_REGION_OFFSET,
        &(ring_region() as u64).to_ne_bytes(),
    );
    put(hub::SIZE_CLASS_OFFSET, &(classes_at() as u64).to_ne_bytes());
    put(
        hub::EXTENT_REGION_OFFSET,
        &(extent_at(0) as u64).to_ne_bytes(),
    );
    for id in (0..PEERS).map(PeerId) {
        let entry = hub::SIZE + usize::from(id.0) * peer::SIZE;
        put(entry + peer::PEER_ID, &id.0.to_ne_bytes());
        for (field, direction) in [
            (peer::SEND_RING_OFFSET, Direction::ToHost),
            (peer::RECV_RING_OFFSET, Direction::ToPeer),
        ] {
            put(
                entry + field,
                &(ring_at(id, direction) as u64).to_ne_bytes(),
            );
            put(
                ring_at(id, direction) + ring::CAPACITY,
                &CAPACITY.to_ne_bytes(),
            );
        }
    }
    for number in 0..class::COUNT {
        let header = classes_at() + number * class::SIZE;
        put(header + class::SLOT_SIZE, &64_u32.to_ne_bytes());
        put(header + class::TOTAL_SLOTS, &SLOTS.to_ne_bytes());
        put(header + class::FREE_HEAD, &0_u64.to_ne_bytes());
        put(header + class::EXTENT_SLOT_SHIFT, &[SLOTS.ilog2() as u8]);
        put(header + class::EXTENT_COUNT, &[1]);
        put(
            header + class::EXTENT_OFFSETS,
            &(extent_at(number) as u64).to_ne_bytes(),
        );
        let extent = extent_at(number);
        put(extent + extent::SIZE_CLASS, &[number as u8]);
        put(extent + extent::SLOT_COUNT, &SLOTS.to_ne_bytes());
        put(
            extent + extent::META_OFFSET,
            &(extent::HEADER_SIZE as u32).to_ne_bytes(),
        );
        let data = extent::HEADER_SIZE + SLOTS as usize * slot::META_SIZE;
        put(extent + extent::DATA_OFFSET, &(data as u32).to_ne_bytes());
        for index in 0..SLOTS {
            let next = if index + 1 == SLOTS {
                class::NO_SLOT
            } else {
                index + 1
            };
            put(
                slot_at(number, index) + slot::NEXT_FREE,
                &next.to_ne_bytes(),
            );
            put(
                slot_at(number, index) + slot::OWNER_PEER,
                &slot::OWNER_NONE.to_ne_bytes(),
            );
        }
    }
    bytes
}
