//! Payload slots, shared by all processes of a hub.

use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::error::{HubError, SlotError};
use crate::futex;
use crate::layout::{SlotFields, class, slot};
use crate::map::Mapping;
use crate::moves::Words;
use crate::peer::PeerEntry;
use crate::stack::FreeStack;

mod reclaim;
mod size_class;
mod slots;

use self::size_class::{Class, fields_of};
pub use self::slots::{ClassStatus, SlotRef, SlotStatus};

/// Owner of the slots that a host fills for peer `id`: neither a peer's id nor nobody, so that the end of one peer
/// never takes slots away from another, and those that it had still to take come back with it.
pub fn host_owner(id: u16) -> u32 {
    0x8000_0000 | u32::from(id)
}

/// The slots of a hub.
#[derive(Debug)]
pub struct HubAllocator {
    map: Arc<Mapping>,
    classes: Vec<Class>,
    fields: SlotFields,
    /// One thread at a time moves a slot between a free list and an owner, so that one claim is enough.
    turn: Mutex<()>,
    /// Where we say which slot it is; `None` for a host, which is not survived by anybody who could ask.
    claim: OnceLock<PeerEntry>,
}

/// The steps between a free list and an owner. Whoever dies within them leaves a slot that is on no list and has no
/// owner, so a plugin says beforehand which slot that would be.
struct Window<'a> {
    claim: Option<&'a PeerEntry>,
    _turn: MutexGuard<'a, ()>,
}

impl Window<'_> {
    fn names(&self, class: u32, index: u32) {
        if let Some(entry) = self.claim {
            let slot = SlotRef {
                class,
                index,
                generation: 0,
            };
            entry.claim_slot(slot.encode());
        }
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.claim {
            entry.claim_nothing();
        }
    }
}

/// The metadata of one slot.
struct Meta<'a> {
    words: Words<'a>,
    next_free: &'a AtomicU32,
}

impl HubAllocator {
    pub(crate) fn new(map: Arc<Mapping>, headers: usize) -> Result<Self, HubError> {
        let fields = fields_of(&map, headers)?;
        let classes = (0..class::COUNT)
            .map(|number| Class::read(&map, headers + number * class::SIZE, &fields))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            map,
            classes,
            fields,
            turn: Mutex::new(()),
            claim: OnceLock::new(),
        })
    }

    /// From now on this process, the peer of this entry, says there which slot it is about to take or to give back.
    pub(crate) fn announce(&self, entry: PeerEntry) {
        entry.claim_nothing();
        let _only_the_first = self.claim.set(entry);
    }

    fn window(&self) -> Window<'_> {
        Window {
            _turn: self.turn.lock().unwrap_or_else(PoisonError::into_inner),
            claim: self.claim.get(),
        }
    }

    /// Takes a slot for a payload of `len` bytes, from the smallest class that fits and has one.
    ///
    /// # Errors
    ///
    /// [`SlotError::TooLarge`], or [`SlotError::Exhausted`] when all that fit are in use now.
    pub fn alloc(&self, len: usize, owner: u32) -> Result<SlotRef, SlotError> {
        let mut fits = false;
        for (number, class) in self.classes.iter().enumerate() {
            if class.slot_size as usize >= len {
                fits = true;
                if let Some(slot) = self.alloc_from(number as u32, class, owner)? {
                    return Ok(slot);
                }
            }
        }
        Err(if fits {
            SlotError::Exhausted(len)
        } else {
            SlotError::TooLarge {
                len,
                max: self
                    .classes
                    .iter()
                    .map(|class| class.slot_size as usize)
                    .max()
                    .unwrap_or(0),
            }
        })
    }

    fn alloc_from(
        &self,
        number: u32,
        class: &Class,
        owner: u32,
    ) -> Result<Option<SlotRef>, SlotError> {
        // A list that a peer made circular must not keep us here for ever.
        for _ in 0..=class.total().saturating_mul(2) {
            let window = self.window();
            let stack = self.stack(number, class)?;
            let taken = stack.pop(|index| window.names(number, index));
            let Some(index) = taken.map_err(|bad| missing(number, bad.0))? else {
                return Ok(None);
            };
            // Somebody owns it although it was on the list: it comes back when that owner frees it.
            if let Some(generation) = self.meta(number, index)?.words.own(owner) {
                return Ok(Some(SlotRef {
                    class: number,
                    index,
                    generation,
                }));
            }
        }
        Ok(None)
    }

    /// Copies the payload into a slot that is still ours alone.
    ///
    /// # Errors
    ///
    /// When the slot is not there, was freed meanwhile, or is too small.
    pub fn fill(&self, slot: SlotRef, payload: &[u8]) -> Result<(), SlotError> {
        self.expect(slot, slot::STATE_ALLOCATED)?;
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let data = self.data(slot, 0, len)?;
        // SAFETY: `data` checked that `len` bytes from there lie within the slot and the mapping. The memory is
        // shared and never borrowed as a slice; nobody else writes it as long as all keep to the protocol, and if
        // somebody does, only these bytes are wrong.
        unsafe { ptr::copy_nonoverlapping(payload.as_ptr(), data, payload.len()) };
        Ok(())
    }

    /// The payload is complete and a descriptor will refer to it.
    ///
    /// # Errors
    ///
    /// When the slot is not allocated, or not of this generation.
    pub fn mark_in_flight(&self, slot: SlotRef) -> Result<(), SlotError> {
        self.expect(slot, slot::STATE_ALLOCATED)?
            .turn(slot::STATE_ALLOCATED, slot::STATE_IN_FLIGHT)
            .map_err(|found| wrong_state(slot, slot::STATE_ALLOCATED, found))
    }

    /// Copies a payload that arrived out of its slot.
    ///
    /// # Errors
    ///
    /// When the slot is not in flight, not of this generation, or does not have that many bytes.
    pub fn read(&self, slot: SlotRef, offset: u32, len: u32) -> Result<Vec<u8>, SlotError> {
        self.expect(slot, slot::STATE_IN_FLIGHT)?;
        let data = self.data(slot, offset, len)?;
        let mut payload = Vec::with_capacity(len as usize);
        // SAFETY: `data` checked that `len` bytes from there lie within the slot and the mapping; the vector has
        // room for them and does not overlap; all bytes are set when its length is. As for concurrent writers: as
        // in `fill`.
        unsafe {
            ptr::copy_nonoverlapping(data, payload.as_mut_ptr(), len as usize);
            payload.set_len(len as usize);
        }
        Ok(payload)
    }

    /// Gives a slot back after its message was taken.
    ///
    /// # Errors
    ///
    /// When the slot is not in flight, or not of this generation.
    pub fn free(&self, slot: SlotRef) -> Result<(), SlotError> {
        self.release(slot, slot::STATE_IN_FLIGHT)
    }

    /// Gives a slot back that was never sent.
    ///
    /// # Errors
    ///
    /// When the slot is not allocated, or not of this generation.
    pub fn free_unsent(&self, slot: SlotRef) -> Result<(), SlotError> {
        self.release(slot, slot::STATE_ALLOCATED)
    }

    fn release(&self, slot: SlotRef, from: u32) -> Result<(), SlotError> {
        let window = self.window();
        window.names(slot.class, slot.index);
        self.expect(slot, from)?
            .let_go(from)
            .map_err(|found| wrong_state(slot, from, found))?;
        let was_empty = self.push(slot.class, slot.index)?;
        drop(window);
        self.tell(slot.class, was_empty);
        Ok(())
    }

    /// Counts slots by state.
    pub fn slot_status(&self) -> SlotStatus {
        let mut classes: Vec<_> = self
            .classes
            .iter()
            .map(|class| ClassStatus {
                slot_size: class.slot_size,
                total: class.total(),
                ..ClassStatus::default()
            })
            .collect();
        for (class, index) in self.all_slots() {
            let (Some(status), Ok(meta)) =
                (classes.get_mut(class as usize), self.meta(class, index))
            else {
                continue;
            };
            // Relaxed: a count of a moment.
            match meta.words.state.load(Ordering::Relaxed) {
                slot::STATE_FREE => status.free += 1,
                slot::STATE_ALLOCATED => status.allocated += 1,
                slot::STATE_IN_FLIGHT => status.in_flight += 1,
                _ => {}
            }
        }
        SlotStatus { classes }
    }

    /// The futex word that changes when a slot that fits `len` bytes is freed: wait on it after
    /// [`SlotError::Exhausted`], with the value read before.
    pub fn slot_available(&self, len: usize) -> Option<&AtomicU32> {
        let class = self
            .classes
            .iter()
            .find(|class| class.slot_size as usize >= len)?;
        self.available(class)
    }

    /// Blocks until [`slot_available`](Self::slot_available) has another value than `seen`, `timeout` at most.
    pub(crate) fn wait_available(&self, len: usize, seen: u32, timeout: Duration) {
        if let Some(word) = self.slot_available(len) {
            futex::wait(word, seen, timeout);
        }
    }

    fn all_slots(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        (0_u32..)
            .zip(&self.classes)
            .flat_map(|(number, class)| class.indexes().map(move |index| (number, index)))
    }

    fn class(&self, number: u32, index: u32) -> Result<&Class, SlotError> {
        self.classes
            .get(number as usize)
            .ok_or(missing(number, index))
    }

    /// What tests change by hand: the list's head, the slot's words, and its link.
    #[cfg(test)]
    pub(crate) fn raw(
        &self,
        number: u32,
        index: u32,
    ) -> Result<(&AtomicU64, Words<'_>, &AtomicU32), SlotError> {
        let words = self.words(number, index).ok_or(missing(number, index))?;
        let head = self.free_head(number, self.class(number, index)?)?;
        Ok((head, words, self.meta(number, index)?.next_free))
    }

    fn words(&self, number: u32, index: u32) -> Option<Words<'_>> {
        Some(self.meta(number, index).ok()?.words)
    }

    fn meta(&self, number: u32, index: u32) -> Result<Meta<'_>, SlotError> {
        let class = self.class(number, index)?;
        let missing = missing(number, index);
        let (extent, slot) = class.locate(index).ok_or(missing)?;
        let words = self
            .map
            .at::<[AtomicU32; 4]>("slot", extent.meta + slot as usize * slot::META_SIZE)
            .map_err(|_| missing)?;
        let [generation, state, next_free, owner] = words;
        Ok(Meta {
            words: Words {
                generation,
                state,
                owner,
            },
            next_free,
        })
    }

    /// Where the payload's bytes are, all of them within the slot.
    fn data(&self, slot: SlotRef, offset: u32, len: u32) -> Result<*mut u8, SlotError> {
        let missing = missing(slot.class, slot.index);
        let class = self.class(slot.class, slot.index)?;
        let (extent, at) = class.locate(slot.index).ok_or(missing)?;
        if offset
            .checked_add(len)
            .is_none_or(|end| end > class.slot_size)
        {
            return Err(SlotError::Range {
                offset,
                len,
                size: class.slot_size,
            });
        }
        let start = extent.data + at as usize * class.slot_size as usize + offset as usize;
        self.map
            .range("slot", start, len as usize)
            .map_err(|_| missing)
    }

    fn expect(&self, slot: SlotRef, state: u32) -> Result<Words<'_>, SlotError> {
        let words = self.meta(slot.class, slot.index)?.words;
        // Acquire: pairs with the Release of the allocation; who matches the generation sees its owner.
        let found = words.generation.load(Ordering::Acquire);
        if found != slot.generation {
            return Err(SlotError::Stale {
                class: slot.class,
                index: slot.index,
                expected: slot.generation,
                found,
            });
        }
        // Acquire: pairs with `turn` of the sender; the payload is there.
        let found = words.state.load(Ordering::Acquire);
        if found != state {
            return Err(wrong_state(slot, state, found));
        }
        Ok(words)
    }

    fn stack<'a>(
        &'a self,
        number: u32,
        class: &Class,
    ) -> Result<FreeStack<'a, impl Fn(u32) -> Option<&'a AtomicU32>>, SlotError> {
        Ok(FreeStack {
            head: self.free_head(number, class)?,
            next: move |index| Some(self.meta(number, index).ok()?.next_free),
        })
    }

    /// Puts a slot on its list. Returns whether the list was empty, so that somebody may wait: `tell` them.
    fn push(&self, number: u32, index: u32) -> Result<bool, SlotError> {
        let class = self.class(number, index)?;
        let stack = self.stack(number, class)?;
        stack.push(index).map_err(|bad| missing(number, bad.0))
    }

    /// Says that a slot of this class was freed.
    fn tell(&self, number: u32, was_empty: bool) {
        // Senders of rapace 0.5 wait for any class on the word of the first.
        let first = (self.fields == SlotFields::RAPACE_05 && number != 0).then_some(0);
        for class in [Some(number), first].into_iter().flatten() {
            if let Some(word) = self
                .classes
                .get(class as usize)
                .and_then(|class| self.available(class))
            {
                futex::bump(word);
                // Whoever sleeps found the class empty before, and the first that comes back wakes all.
                if was_empty {
                    futex::wake_all(word);
                }
            }
        }
    }

    fn available(&self, class: &Class) -> Option<&AtomicU32> {
        self.map
            .at("size class", class.header + self.fields.slot_available)
            .ok()
    }

    fn free_head(&self, number: u32, class: &Class) -> Result<&AtomicU64, SlotError> {
        self.map
            .at("size class", class.header + self.fields.free_head)
            .map_err(|_| missing(number, class::NO_SLOT))
    }
}

fn wrong_state(slot: SlotRef, expected: u32, found: u32) -> SlotError {
    SlotError::State {
        class: slot.class,
        index: slot.index,
        expected,
        found,
    }
}

fn missing(class: u32, index: u32) -> SlotError {
    SlotError::NoSuchSlot { class, index }
}
