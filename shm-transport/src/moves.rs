//! A slot's steps between its free list and an owner, on its words alone, so that loom can take them too.

use crate::layout::slot;
use crate::sync::{AtomicU32, Ordering};

/// The words of one slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words<'a> {
    pub(crate) generation: &'a AtomicU32,
    pub(crate) state: &'a AtomicU32,
    pub(crate) owner: &'a AtomicU32,
}

impl Words<'_> {
    /// Makes a slot that was just popped the property of `owner`. Returns its new generation; `None` when somebody owns
    /// it although it was on the list.
    pub(crate) fn own(&self, owner: u32) -> Option<u32> {
        // AcqRel: Acquire pairs with the Release in `let_go`, so the last reader of the payload is done with it;
        // Release hands on the name that we gave to who sees the state.
        self.state
            .compare_exchange(
                slot::STATE_FREE,
                slot::STATE_ALLOCATED,
                Ordering::AcqRel,
                Ordering::Relaxed,
            )
            .ok()?;
        // Release: a host that reclaims after our death sees the owner (Acquire in `is_of`).
        self.owner.store(owner, Ordering::Release);
        // Release: who sees the new generation sees the new owner.
        let before = self.generation.fetch_add(1, Ordering::Release);
        Some(before.wrapping_add(1))
    }

    /// Takes the slot off its owner, to be pushed onto the list; or says in which other state than `from` it is.
    pub(crate) fn let_go(&self, from: u32) -> Result<(), u32> {
        // Through ALLOCATED without an owner: whoever dies here leaves a slot that the search for lost ones finds, and
        // the owner's end, seen meanwhile, frees it no more.
        self.turn(from, slot::STATE_ALLOCATED)?;
        // Release: pairs with `is_of`, and hands on the name that we gave.
        self.owner.store(slot::OWNER_NONE, Ordering::Release);
        // Release: we are done with the payload; pairs with the exchange in `own`.
        self.state.store(slot::STATE_FREE, Ordering::Release);
        Ok(())
    }

    /// Changes the state; or says which other than `from` it is.
    pub(crate) fn turn(&self, from: u32, to: u32) -> Result<(), u32> {
        // AcqRel: Release makes the payload visible with the state, Acquire what the other side did before. Relaxed
        // for the one that is not ours: it is only reported.
        self.state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
            .map(|_| ())
    }

    /// Whether this is its owner.
    pub(crate) fn is_of(&self, owner: u32) -> bool {
        // Acquire: pairs with the Release stores of the owner; what it did to the slot before is there.
        self.owner.load(Ordering::Acquire) == owner
    }

    /// Takes the slot off an owner that is dead, to be pushed onto the list. `false` when it has another owner. Not
    /// beside a `let_go` of the same slot: a host's threads take turns, and a dead peer's slots are no one else's.
    pub(crate) fn take_from(&self, owner: u32) -> bool {
        // AcqRel: Acquire as in `is_of`; Release hands on that it has no owner.
        if self
            .owner
            .compare_exchange(owner, slot::OWNER_NONE, Ordering::AcqRel, Ordering::Relaxed)
            .is_err()
        {
            return false;
        }
        // Release: descriptors that still name the old generation are stale from now on.
        self.generation.fetch_add(1, Ordering::Release);
        // AcqRel: as in `let_go`. A slot that is free and still has an owner is on no list yet: its receiver died
        // between the two (rapace frees in that order; we never leave such a slot).
        self.state.swap(slot::STATE_FREE, Ordering::AcqRel);
        true
    }

    /// Generation and state, if nobody owns the slot.
    pub(crate) fn ownerless(&self) -> Option<(u32, u32)> {
        // Acquire, all three: they stay in this order, and whoever wrote them (Release) has named the slot before.
        // The generation comes first: an allocation that it includes has set its owner already.
        let generation = self.generation.load(Ordering::Acquire);
        let owner = self.owner.load(Ordering::Acquire);
        let state = self.state.load(Ordering::Acquire);
        // A message on its way always has an owner, or is about to be freed by its receiver.
        (owner == slot::OWNER_NONE && state < slot::STATE_IN_FLIGHT).then_some((generation, state))
    }
}
