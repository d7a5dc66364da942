//! The hub's bytes behind the transport's back: what a fault needs that no correct transport offers.
//!
//! Works on the mapping that the transport made in this process, so that a fault looks like one of the transport and
//! leaves no second mapping to be seen. Offsets are those of the file format.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use anyhow::{Context as _, bail, ensure};
use shm_transport::layout::{class, desc, extent, hub, peer, ring, slot};
use sim_kit::lane::Message;

use crate::spec::Lane;

/// The mapping of a hub that the transport holds in this process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawHub {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: all access goes through atomics or through plain writes into slots that nobody else writes meanwhile; the
// mapping belongs to the process and not to a thread.
unsafe impl Send for RawHub {}
// SAFETY: as above.
unsafe impl Sync for RawHub {}

/// One ring of a peer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawRing {
    hub: RawHub,
    at: usize,
    capacity: u64,
}

impl RawHub {
    /// Finds the transport's mapping of `path`. The caller keeps the transport alive for as long as it uses this.
    pub(crate) fn of(path: &Path) -> anyhow::Result<Self> {
        let inode = fs::metadata(path)
            .with_context(|| format!("looking at hub {}", path.display()))?
            .ino();
        let maps = fs::read_to_string("/proc/self/maps").context("reading our own mappings")?;
        for map in maps.lines() {
            let mut fields = map.split_whitespace();
            let (Some(range), Some(rights), Some(offset)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let found = fields.nth(1).and_then(|field| field.parse().ok());
            if found != Some(inode)
                || !rights.starts_with("rw")
                || !offset.trim_start_matches('0').is_empty()
            {
                continue;
            }
            let (from, to) = range.split_once('-').context("mapping without a range")?;
            let (from, to) = (
                usize::from_str_radix(from, 16)?,
                usize::from_str_radix(to, 16)?,
            );
            let base = NonNull::new(from as *mut u8).context("mapping at address 0")?;
            ensure!(
                to - from >= hub::SIZE,
                "hub {} is mapped too short",
                path.display()
            );
            return Ok(Self {
                base,
                len: to - from,
            });
        }
        bail!("hub {} is not mapped by this process", path.display())
    }

    fn u64_at(&self, at: usize) -> &AtomicU64 {
        assert!(
            at.is_multiple_of(8) && at + 8 <= self.len,
            "offset {at} is not in the hub"
        );
        // SAFETY: in bounds and aligned as just checked, and the transport keeps the mapping for the process's life.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(at).cast()) }
    }

    fn u32_at(&self, at: usize) -> &AtomicU32 {
        assert!(
            at.is_multiple_of(4) && at + 4 <= self.len,
            "offset {at} is not in the hub"
        );
        // SAFETY: in bounds and aligned as just checked, and the transport keeps the mapping for the process's life.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(at).cast()) }
    }

    // Everything below that was written once, before this process saw the hub, is read relaxed.

    fn offset(&self, field: usize) -> usize {
        self.u64_at(field).load(Ordering::Relaxed) as usize
    }

    /// The ring of a lane.
    pub(crate) fn ring(self, id: u16, lane: Lane) -> RawRing {
        let capacity = self.u32_at(hub::RING_CAPACITY).load(Ordering::Relaxed);
        let entry = self.offset(hub::PEER_TABLE_OFFSET) + usize::from(id) * peer::SIZE;
        let field = match lane {
            Lane::HostToPeer => peer::RECV_RING_OFFSET,
            Lane::PeerToHost => peer::SEND_RING_OFFSET,
        };
        RawRing {
            hub: self,
            at: self.offset(entry + field),
            capacity: u64::from(capacity),
        }
    }

    /// Takes up to `most` free slots of a size class and marks them in flight, referred to by nothing. Returns how
    /// many it got.
    pub(crate) fn leak_slots(&self, size_class: usize, owner: u16, most: usize) -> usize {
        let header = self.offset(hub::SIZE_CLASS_OFFSET) + size_class * class::SIZE;
        (0..most)
            .take_while(|_| self.leak_slot(header, owner))
            .count()
    }

    fn leak_slot(&self, header: usize, owner: u16) -> bool {
        let free = self.u64_at(header + class::FREE_HEAD);
        // Acquire: pairs with the release of whoever pushed the slot, so that its `next_free` is the one pushed with it.
        let mut seen = free.load(Ordering::Acquire);
        loop {
            let index = seen as u32;
            if index == class::NO_SLOT {
                return false;
            }
            let meta = self.slot_meta(header, index);
            let next = self.u32_at(meta + slot::NEXT_FREE).load(Ordering::Relaxed);
            let popped = ((seen >> 32) + 1) << 32 | u64::from(next);
            // AcqRel: takes over what the pusher wrote, and hands our view on to the next popper. The tag in the upper
            // half makes a stale `next` fail here.
            match free.compare_exchange(seen, popped, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    // The slot is ours alone now, and whoever looks only counts states.
                    self.u32_at(meta + slot::GENERATION)
                        .fetch_add(1, Ordering::Relaxed);
                    self.u32_at(meta + slot::OWNER_PEER)
                        .store(u32::from(owner), Ordering::Relaxed);
                    self.u32_at(meta + slot::STATE)
                        .store(slot::STATE_IN_FLIGHT, Ordering::Relaxed);
                    return true;
                }
                Err(now) => seen = now,
            }
        }
    }

    fn slot_meta(&self, header: usize, index: u32) -> usize {
        let shift = self
            .u32_at(header + class::EXTENT_SLOT_SHIFT)
            .load(Ordering::Relaxed)
            .to_ne_bytes()[0];
        let (extent_id, within) = (
            (index >> shift) as usize,
            (index & ((1 << shift) - 1)) as usize,
        );
        let at = self.offset(header + class::EXTENT_OFFSETS + 8 * extent_id);
        let meta = self
            .u32_at(at + extent::META_OFFSET)
            .load(Ordering::Relaxed) as usize;
        at + meta + within * slot::META_SIZE
    }
}

impl RawRing {
    /// The producer's index. Acquire: pairs with the publisher's release, so what is counted can also be read.
    pub(crate) fn head(&self) -> u64 {
        self.hub
            .u64_at(self.at + ring::VISIBLE_HEAD)
            .load(Ordering::Acquire)
    }

    /// The consumer's index. Acquire: pairs with the consumer's release, so the slot is free when it is counted so.
    pub(crate) fn tail(&self) -> u64 {
        self.hub
            .u64_at(self.at + ring::TAIL)
            .load(Ordering::Acquire)
    }

    /// Entries that wait.
    pub(crate) fn len(&self) -> u64 {
        self.head().wrapping_sub(self.tail())
    }

    /// Descriptors that fit.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Sets the producer's index, whatever that breaks.
    pub(crate) fn set_head(&self, head: u64) {
        // Release: pairs with the consumer's acquire of the head, as a publish does.
        self.hub
            .u64_at(self.at + ring::VISIBLE_HEAD)
            .store(head, Ordering::Release);
    }

    /// Sets the consumer's index, whatever that breaks.
    pub(crate) fn set_tail(&self, tail: u64) {
        // Release: pairs with the producer's acquire of the tail, as a dequeue does.
        self.hub
            .u64_at(self.at + ring::TAIL)
            .store(tail, Ordering::Release);
    }

    /// Writes an inline message into the slot of `index` without publishing it.
    pub(crate) fn write(&self, index: u64, message: &Message) {
        let mut bytes = [0u8; desc::SIZE];
        let inline = &message.payload[..message.payload.len().min(desc::INLINE_CAPACITY)];
        put(&mut bytes, desc::MSG_ID, &message.id.to_ne_bytes());
        put(&mut bytes, desc::CHANNEL_ID, &message.channel.to_ne_bytes());
        put(&mut bytes, desc::METHOD_ID, &message.method.to_ne_bytes());
        put(
            &mut bytes,
            desc::PAYLOAD_SLOT,
            &desc::INLINE_SLOT.to_ne_bytes(),
        );
        put(
            &mut bytes,
            desc::PAYLOAD_LEN,
            &(inline.len() as u32).to_ne_bytes(),
        );
        put(&mut bytes, desc::FLAGS, &desc::FLAG_DATA.to_ne_bytes());
        put(&mut bytes, desc::DEADLINE_NS, &u64::MAX.to_ne_bytes());
        put(&mut bytes, desc::INLINE_PAYLOAD, inline);
        let at = self.at + ring::HEADER_SIZE + (index & (self.capacity - 1)) as usize * desc::SIZE;
        for (word, chunk) in bytes.chunks_exact(8).enumerate() {
            let value = u64::from_ne_bytes(chunk.try_into().expect("chunks of eight"));
            // Relaxed: the release of the head publishes it.
            self.hub
                .u64_at(at + 8 * word)
                .store(value, Ordering::Relaxed);
        }
    }

    /// Publishes an inline message without ringing.
    pub(crate) fn publish(&self, message: &Message) {
        let head = self.head();
        self.write(head, message);
        self.set_head(head + 1);
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}
