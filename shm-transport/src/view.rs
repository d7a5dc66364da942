//! A ring of a hub, for those who look at it from outside, and for stand-ins that plant faults.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::desc::{Descriptor, WORDS};
use crate::error::HubError;
use crate::layout::ring;
use crate::map::Mapping;
use crate::ring::{Entry, Ring};

/// One ring of a hub.
///
/// The transports keep their own index of the end that is theirs. The methods here work on the indexes in the file,
/// one step at a time: for diagnostics, tests, and programs that want to break the protocol on purpose. Do not use
/// the writing ones beside a transport on the same end.
#[derive(Clone, Debug)]
pub struct DescRing {
    map: Arc<Mapping>,
    offset: usize,
    capacity: u32,
}

/// The state of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingStatus {
    /// Descriptors ever published.
    pub visible_head: u64,
    /// Descriptors ever taken.
    pub tail: u64,
    /// Descriptors that fit.
    pub capacity: u32,
    /// Descriptors waiting. More than `capacity` in a corrupt ring, 0 when the tail is beyond the head.
    pub len: u64,
}

impl DescRing {
    pub(crate) fn new(map: Arc<Mapping>, offset: usize, capacity: u32) -> Result<Self, HubError> {
        let ring = Self {
            map,
            offset,
            capacity,
        };
        ring.parts()?;
        Ok(ring)
    }

    fn parts(&self) -> Result<Ring<'_, WORDS>, HubError> {
        let slots = self.map.slice::<Entry<WORDS>>(
            "ring",
            self.offset + ring::HEADER_SIZE,
            self.capacity as usize,
        )?;
        Ok(Ring {
            head: self
                .map
                .at::<AtomicU64>("ring", self.offset + ring::VISIBLE_HEAD)?,
            tail: self.map.at::<AtomicU64>("ring", self.offset + ring::TAIL)?,
            slots,
        })
    }

    /// The parts; `new` has seen them all within the mapping, which does not shrink.
    pub(crate) fn ring(&self) -> Ring<'_, WORDS> {
        static NOTHING: AtomicU64 = AtomicU64::new(0);
        self.parts().unwrap_or(Ring {
            head: &NOTHING,
            tail: &NOTHING,
            slots: &[],
        })
    }

    /// Head, tail and length now. Head and tail are read one after the other, so a busy ring may look fuller than
    /// it ever was, never emptier.
    pub fn ring_status(&self) -> RingStatus {
        let ring = self.ring();
        // Acquire on the tail keeps the head's load after it, so that the head is never behind the tail.
        let tail = ring.tail.load(Ordering::Acquire);
        let visible_head = ring.head.load(Ordering::Acquire);
        RingStatus {
            visible_head,
            tail,
            capacity: self.capacity,
            len: visible_head.saturating_sub(tail),
        }
    }

    /// Writes a descriptor into the slot of this index and publishes nothing.
    pub fn write_slot(&self, index: u64, descriptor: &Descriptor) {
        self.ring().write(index, &descriptor.to_words());
    }

    /// The descriptor in the slot of this index, whatever it is.
    pub fn read_slot(&self, index: u64) -> Descriptor {
        let ring = self.ring();
        let at = (index & u64::from(self.capacity - 1)) as usize;
        let mut words = [0; WORDS];
        if let Some(slot) = ring.slots.get(at) {
            for (word, from) in words.iter_mut().zip(slot) {
                // Relaxed: a look at what is there, which may be half written.
                *word = from.load(Ordering::Relaxed);
            }
        }
        Descriptor::from_words(words)
    }

    /// Sets the head, whatever it was.
    pub fn publish(&self, head: u64) {
        self.ring().publish(head);
    }

    /// Sets the tail, whatever it was.
    pub fn set_tail(&self, tail: u64) {
        // Release: what was read from the slots before is read before they are given back.
        self.ring().tail.store(tail, Ordering::Release);
    }

    /// Writes and publishes a descriptor. `false` when the ring is full. Nobody is woken.
    pub fn enqueue(&self, descriptor: &Descriptor) -> bool {
        let status = self.ring_status();
        if status.len >= u64::from(self.capacity) {
            return false;
        }
        self.write_slot(status.visible_head, descriptor);
        self.publish(status.visible_head.wrapping_add(1));
        true
    }

    /// Takes the oldest descriptor. Nobody is woken, and a payload slot stays as it is.
    pub fn dequeue(&self) -> Option<Descriptor> {
        let status = self.ring_status();
        if status.len == 0 {
            return None;
        }
        let descriptor = self.read_slot(status.tail);
        self.set_tail(status.tail.wrapping_add(1));
        Some(descriptor)
    }

    /// Empties the ring and starts its indexes anew, as a process that attaches for the first time expects them.
    pub(crate) fn reset(&self) {
        let ring = self.ring();
        // Relaxed: nobody uses the ring; who will is told later, by ways that synchronize.
        ring.tail.store(0, Ordering::Relaxed);
        ring.head.store(0, Ordering::Relaxed);
    }
}
