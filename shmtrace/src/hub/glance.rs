//! One look at the control part of a hub: rings, peer entries, descriptors.

use std::{
    cell::Ref,
    os::unix::fs::FileExt as _,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

use shm_transport::layout::{desc, peer, ring};
use shmtrace_engine::{Direction, PeerId, input::Indexes};

use super::{HubReader, residency::Residency};

/// Attempts at reading a pair of indexes that does not change meanwhile.
const STABLE_ATTEMPTS: usize = 8;

/// A look at the control part, good for a moment: pages that are not there at its begin are read with `pread`, which
/// allocates nothing in a hole.
#[derive(Debug)]
pub struct Glance<'a> {
    reader: &'a HubReader,
    residency: Ref<'a, Residency>,
}

/// A ring as one look showed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingView {
    /// Head and tail.
    pub indexes: Indexes,
    /// What its header says; the hub's header is what counts.
    pub capacity: u32,
    /// Head and tail were the same at two reads one after the other, so they belong together.
    pub stable: bool,
}

/// An entry of the peer table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerEntry {
    /// Which.
    pub id: PeerId,
    /// What the entry itself says its id is.
    pub stated_id: u16,
    /// `FLAG_*` bits of `shm_transport::layout::peer`.
    pub flags: u32,
    /// Heartbeats.
    pub epoch: u64,
    /// Last heartbeat, ns since the Unix epoch; 0 = never.
    pub last_seen: u64,
    /// Where the entry says that the ring peer -> host is.
    pub send_ring: u64,
    /// Where the entry says that the ring host -> peer is.
    pub recv_ring: u64,
}

impl PeerEntry {
    /// Given out to a plugin, now or once.
    pub fn is_used(&self) -> bool {
        self.flags != 0
    }

    /// Claimed or about to be claimed by a plugin that has not been given up.
    pub fn is_expected_alive(&self) -> bool {
        self.flags & (peer::FLAG_ACTIVE | peer::FLAG_RESERVED) != 0
            && self.flags & peer::FLAG_DEAD == 0
    }
}

/// A message descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// Message id.
    pub msg_id: u64,
    /// Channel id.
    pub channel: u32,
    /// Method id or control verb.
    pub method: u32,
    /// `u32::MAX` = inline, else class and slot.
    pub payload_slot: u32,
    /// Generation of that slot.
    pub payload_generation: u32,
    /// Offset within the slot.
    pub payload_offset: u32,
    /// Bytes of payload.
    pub payload_len: u32,
    /// `FLAG_*` bits of `shm_transport::layout::desc`.
    pub flags: u32,
    /// Credits granted.
    pub credit_grant: u32,
    /// Deadline, `u64::MAX` = none.
    pub deadline_ns: u64,
    /// The inline payload.
    pub inline: [u8; desc::INLINE_CAPACITY],
}

impl Descriptor {
    /// From its bytes in a ring.
    pub fn parse(bytes: &[u8; desc::SIZE]) -> Self {
        let u32_at = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let u64_at = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(word)
        };
        let mut inline = [0; desc::INLINE_CAPACITY];
        inline.copy_from_slice(&bytes[desc::INLINE_PAYLOAD..]);
        Self {
            msg_id: u64_at(desc::MSG_ID),
            channel: u32_at(desc::CHANNEL_ID),
            method: u32_at(desc::METHOD_ID),
            payload_slot: u32_at(desc::PAYLOAD_SLOT),
            payload_generation: u32_at(desc::PAYLOAD_GENERATION),
            payload_offset: u32_at(desc::PAYLOAD_OFFSET),
            payload_len: u32_at(desc::PAYLOAD_LEN),
            flags: u32_at(desc::FLAGS),
            credit_grant: u32_at(desc::CREDIT_GRANT),
            deadline_ns: u64_at(desc::DEADLINE_NS),
            inline,
        }
    }

    /// Size class and index of its slot; `None` if the payload is inline.
    pub fn slot(&self) -> Option<(u8, u32)> {
        let index = self.payload_slot & ((1 << desc::SLOT_CLASS_SHIFT) - 1);
        (self.payload_slot != desc::INLINE_SLOT)
            .then_some(((self.payload_slot >> desc::SLOT_CLASS_SHIFT) as u8, index))
    }
}

impl<'a> Glance<'a> {
    pub(super) fn new(reader: &'a HubReader) -> Self {
        // While another glance is in use, its look at the page table serves this one too.
        if let Ok(mut residency) = reader.residency.try_borrow_mut() {
            residency.look(&reader.control);
        }
        Self {
            reader,
            residency: reader.residency.borrow(),
        }
    }

    /// One lane's ring; `None` if there is no such peer or the file lost that part.
    pub fn ring(&self, peer: PeerId, direction: Direction) -> Option<RingView> {
        let offset = self.reader.ring_offset(peer, direction)?;
        let both = || {
            // Tail first: whatever happens in between, an honest ring never looks shorter than empty.
            let tail = self.u64(offset + ring::TAIL as u64)?;
            let head = self.u64(offset + ring::VISIBLE_HEAD as u64)?;
            Some(Indexes { head, tail })
        };
        let capacity = self.u32(offset + ring::CAPACITY as u64)?;
        let mut indexes = both()?;
        let mut stable = false;
        for _ in 0..STABLE_ATTEMPTS {
            let again = both()?;
            stable = again == indexes;
            indexes = again;
            if stable {
                break;
            }
        }
        (!self.reader.guard.has_faulted()).then_some(RingView {
            indexes,
            capacity,
            stable,
        })
    }

    /// One entry of the peer table.
    pub fn peer_entry(&self, id: PeerId) -> Option<PeerEntry> {
        let offset = self.reader.geometry.peer_entry(id)?;
        let entry = PeerEntry {
            id,
            stated_id: self.u32(offset + peer::PEER_ID as u64)? as u16,
            flags: self.u32(offset + peer::FLAGS as u64)?,
            epoch: self.u64(offset + peer::EPOCH as u64)?,
            last_seen: self.u64(offset + peer::LAST_SEEN as u64)?,
            send_ring: self.u64(offset + peer::SEND_RING_OFFSET as u64)?,
            recv_ring: self.u64(offset + peer::RECV_RING_OFFSET as u64)?,
        };
        (!self.reader.guard.has_faulted()).then_some(entry)
    }

    /// An aligned word of the control part.
    pub(super) fn u64(&self, offset: u64) -> Option<u64> {
        let place = self.place(offset, 8)?;
        if self.is_resident(place) {
            // SAFETY: `place` is aligned and within the mapping, which lives as long as the reader; the page may vanish
            // at any time, which the guard turns into a load of 0. Others write this memory with atomic stores (or with
            // anything: then this load still gives some 8 bytes). Loads are the only access made, as for read-only
            // memory; a naturally aligned load of this size is allowed there.
            let word =
                unsafe { AtomicU64::from_ptr(self.reader.control.as_mut_ptr().add(place).cast()) };
            let value = word.load(Ordering::Relaxed);
            // Acquire: what is loaded after this (the other index, a descriptor) is at least as new as this word;
            // partner of the Release stores of head and tail in the traced processes.
            fence(Ordering::Acquire);
            return Some(value);
        }
        let mut bytes = [0; 8];
        self.reader.file.read_exact_at(&mut bytes, offset).ok()?;
        Some(u64::from_ne_bytes(bytes))
    }

    /// An aligned half word of the control part.
    pub(super) fn u32(&self, offset: u64) -> Option<u32> {
        let place = self.place(offset, 4)?;
        if self.is_resident(place) {
            // SAFETY: as in `u64`.
            let word =
                unsafe { AtomicU32::from_ptr(self.reader.control.as_mut_ptr().add(place).cast()) };
            let value = word.load(Ordering::Relaxed);
            // Acquire: as in `u64`.
            fence(Ordering::Acquire);
            return Some(value);
        }
        let mut bytes = [0; 4];
        self.reader.file.read_exact_at(&mut bytes, offset).ok()?;
        Some(u32::from_ne_bytes(bytes))
    }

    /// An offset that may be loaded from: aligned, and all of it in the control part of the file as it was opened.
    fn place(&self, offset: u64, bytes: u64) -> Option<usize> {
        let end = offset.checked_add(bytes)?;
        let place = usize::try_from(offset).ok()?;
        let limit = self
            .reader
            .opened_size
            .min(self.reader.geometry.control_bytes() as u64);
        (offset.is_multiple_of(bytes) && end <= limit).then_some(place)
    }

    fn is_resident(&self, place: usize) -> bool {
        self.residency.may_be_touched(place, &self.reader.control)
    }
}

impl HubReader {
    /// The descriptors of a lane's ring from index `from` to before `to`, at most a ring full, with their indexes.
    /// What lies there may have been overwritten meanwhile: compare the head before and after.
    pub fn descriptors(
        &self,
        peer: PeerId,
        direction: Direction,
        from: u64,
        to: u64,
    ) -> Vec<(u64, Descriptor)> {
        let capacity = u64::from(self.geometry.ring_capacity);
        let from = from.max(to.saturating_sub(capacity));
        let Some(ring) = self.ring_offset(peer, direction) else {
            return Vec::new();
        };
        let mut descriptors = Vec::with_capacity(to.saturating_sub(from) as usize);
        let mut index = from;
        while index < to {
            // Up to the ring's end in one read.
            let until_wrap = capacity - (index & (capacity - 1));
            let count = until_wrap.min(to - index);
            let bytes = self.read_at(
                self.geometry.descriptor(ring, index),
                count as usize * desc::SIZE,
            );
            let Some(bytes) = bytes else { break };
            for (number, descriptor) in bytes.as_chunks::<{ desc::SIZE }>().0.iter().enumerate() {
                descriptors.push((index + number as u64, Descriptor::parse(descriptor)));
            }
            index += count;
        }
        descriptors
    }
}
