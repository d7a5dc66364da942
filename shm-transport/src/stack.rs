//! The free slots of one size class: a Treiber stack of indexes, linked through the slots' metadata.
//!
//! The head carries a tag that grows with each change, so a head that was popped and pushed back in between is not
//! taken for the one that was read (the ABA problem). What the stack says is only a hint: whoever pops an index owns
//! the slot once its state could be changed from free, and never before.

use crate::layout::class::NO_SLOT;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// A stack somewhere in memory. `next` finds the link word of an index, `None` when there is no such slot.
pub(crate) struct FreeStack<'a, F> {
    pub(crate) head: &'a AtomicU64,
    pub(crate) next: F,
}

/// The stack holds an index that no slot has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoSuchSlot(pub(crate) u32);

fn unpack(head: u64) -> (u32, u32) {
    (head as u32, (head >> 32) as u32)
}

/// The head for this index, with the tag that follows `tag`.
fn pack(index: u32, tag: u32) -> u64 {
    u64::from(tag.wrapping_add(1)) << 32 | u64::from(index)
}

impl<'a, F: Fn(u32) -> Option<&'a AtomicU32>> FreeStack<'a, F> {
    /// Takes the newest index; `None` when the stack is empty. `name` is told each index before it is tried.
    pub(crate) fn pop(&self, name: impl Fn(u32)) -> Result<Option<u32>, NoSuchSlot> {
        // Acquire: pairs with the Release half of `push`'s exchange; the link of this index is visible.
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let (index, tag) = unpack(head);
            if index == NO_SLOT {
                return Ok(None);
            }
            let link = (self.next)(index).ok_or(NoSuchSlot(index))?;
            // Relaxed: the Acquire of the head covers it. It may be stale if somebody popped the index meanwhile;
            // then the tag has moved and the exchange fails.
            let next = link.load(Ordering::Relaxed);
            name(index);
            // AcqRel: Release hands on the links that we saw, and the name that we gave, to who reads our head;
            // Acquire as above.
            match self.head.compare_exchange_weak(
                head,
                pack(next, tag),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Ok(Some(index)),
                Err(now) => head = now,
            }
        }
    }

    /// Puts an index back. Returns whether the stack was empty, so that somebody may wait for one.
    pub(crate) fn push(&self, index: u32) -> Result<bool, NoSuchSlot> {
        let link = (self.next)(index).ok_or(NoSuchSlot(index))?;
        // Relaxed: the head is only linked to, its slot is not touched.
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            let (next, tag) = unpack(head);
            // Relaxed: made visible by the exchange.
            link.store(next, Ordering::Relaxed);
            // AcqRel: Release publishes the link, pairs with the Acquire loads in `pop`; Acquire, so that the
            // links below our index, published by others, are handed on with it.
            match self.head.compare_exchange_weak(
                head,
                pack(index, tag),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(next == NO_SLOT),
                Err(now) => head = now,
            }
        }
    }
}
