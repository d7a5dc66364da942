//! What a peer says about the slot that it has in its hands, in one word of its entry.

use crate::layout::{desc, peer};
use crate::sync::{AtomicU64, Ordering};

/// Which slot a peer has in its hands, between a free list and an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It does not say: a peer of rapace, or none yet.
    Unannounced,
    /// None.
    Nothing,
    /// This one, as a descriptor names it.
    Slot(u32),
}

/// What the peer says.
pub(crate) fn read(word: &AtomicU64) -> Claim {
    // Acquire: pairs with both stores below; who sees a claim gone, or another in its place, sees the slot owned or
    // listed.
    match word.load(Ordering::Acquire) {
        word if word & peer::CLAIM_ANNOUNCED == 0 => Claim::Unannounced,
        word if word as u32 == desc::INLINE_SLOT => Claim::Nothing,
        word => Claim::Slot(word as u32),
    }
}

/// The peer is about to move this slot between a free list and an owner.
pub(crate) fn slot(word: &AtomicU64, slot: u32) {
    // Release: who sees this claim sees what became of the slot of the one before. What follows, an exchange of the
    // list's head or of the slot's state, is a Release too; who sees that sees this.
    word.store(peer::CLAIM_ANNOUNCED | u64::from(slot), Ordering::Release);
}

/// The peer moves no slot now, and says so when it does.
pub(crate) fn nothing(word: &AtomicU64) {
    // Release: pairs with `read`; the slot is owned or listed.
    word.store(
        peer::CLAIM_ANNOUNCED | u64::from(desc::INLINE_SLOT),
        Ordering::Release,
    );
}
