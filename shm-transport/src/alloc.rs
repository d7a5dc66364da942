//! Payload slots, shared by all processes of a hub.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::error::{HubError, SlotError};
use crate::futex;
use crate::layout::{SlotFields, class, desc, extent, slot};
use crate::map::Mapping;
use crate::stack::FreeStack;

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
}

/// A size class, with everything that never changes read and checked once.
#[derive(Debug)]
struct Class {
    header: usize,
    slot_size: u32,
    shift: u32,
    extents: Vec<Extent>,
}

#[derive(Debug)]
struct Extent {
    slots: u32,
    meta: usize,
    data: usize,
}

/// A slot that is ours until it is sent or freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRef {
    /// Size class, 0 to 4.
    pub class: u32,
    /// Global index within the class.
    pub index: u32,
    /// Generation since it was allocated.
    pub generation: u32,
}

impl SlotRef {
    /// As a descriptor's `payload_slot` says it.
    pub fn encode(self) -> u32 {
        self.class << desc::SLOT_CLASS_SHIFT | self.index
    }

    /// From a descriptor's `payload_slot` and `payload_generation`. Whether it exists is checked when it is used.
    pub fn decode(payload_slot: u32, generation: u32) -> Self {
        Self {
            class: payload_slot >> desc::SLOT_CLASS_SHIFT,
            index: payload_slot & ((1 << desc::SLOT_CLASS_SHIFT) - 1),
            generation,
        }
    }
}

/// Slots by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassStatus {
    /// Bytes of a slot.
    pub slot_size: u32,
    /// All slots.
    pub total: u32,
    /// Free ones.
    pub free: u32,
    /// Being filled by a sender.
    pub allocated: u32,
    /// Referred to by a message on its way.
    pub in_flight: u32,
}

/// Slots by class and state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotStatus {
    /// The classes, smallest slots first.
    pub classes: Vec<ClassStatus>,
}

impl SlotStatus {
    /// All classes together; `slot_size` is 0.
    pub fn total(&self) -> ClassStatus {
        self.classes
            .iter()
            .fold(ClassStatus::default(), |sum, class| ClassStatus {
                slot_size: 0,
                total: sum.total + class.total,
                free: sum.free + class.free,
                allocated: sum.allocated + class.allocated,
                in_flight: sum.in_flight + class.in_flight,
            })
    }
}

/// The metadata of one slot.
struct Meta<'a> {
    generation: &'a AtomicU32,
    state: &'a AtomicU32,
    next_free: &'a AtomicU32,
    owner: &'a AtomicU32,
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
        })
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
            let Some(index) = self.pop(number, class)? else {
                return Ok(None);
            };
            let meta = self.meta(number, index)?;
            // AcqRel: Acquire pairs with the Release in `release`, so the last reader of the payload is done with
            // it; Release is for symmetry with those that look at states.
            if meta
                .state
                .compare_exchange(
                    slot::STATE_FREE,
                    slot::STATE_ALLOCATED,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                )
                .is_err()
            {
                // Somebody owns it although it was on the list: it comes back when that owner frees it.
                continue;
            }
            // Release: a host that reclaims after our death sees the owner (Acquire in `reclaim_owner`).
            meta.owner.store(owner, Ordering::Release);
            // Release: who sees the new generation sees the new owner.
            let generation = meta.generation.fetch_add(1, Ordering::Release);
            return Ok(Some(SlotRef {
                class: number,
                index,
                generation: generation.wrapping_add(1),
            }));
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
        self.turn(slot, slot::STATE_ALLOCATED, slot::STATE_IN_FLIGHT)
            .map(|_| ())
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
        // Through ALLOCATED without an owner: freed only when nobody can find it under the old owner any more, so
        // that reclaiming at the same time cannot free it twice.
        let meta = self.turn(slot, from, slot::STATE_ALLOCATED)?;
        // Release: pairs with `reclaim_owner`.
        meta.owner.store(slot::OWNER_NONE, Ordering::Release);
        // Release: we are done with the payload; pairs with the exchange in `alloc_from`.
        meta.state.store(slot::STATE_FREE, Ordering::Release);
        self.push(slot.class, slot.index)
    }

    /// Frees all slots of a dead peer: those that it filled, and those that the host filled for it. Returns how many.
    ///
    /// Only for a host, and only once the peer's process is gone and nothing of its rings will be read any more.
    pub fn reclaim_peer(&self, id: u16) -> usize {
        self.reclaim_owner(u32::from(id)) + self.reclaim_owner(host_owner(id))
    }

    /// Frees all slots of one owner.
    pub fn reclaim_owner(&self, owner: u32) -> usize {
        let mut freed = 0;
        for (class, index) in self.all_slots() {
            let Ok(meta) = self.meta(class, index) else {
                continue;
            };
            // Acquire: pairs with the Release stores of the owner.
            if meta.owner.load(Ordering::Acquire) != owner {
                continue;
            }
            // AcqRel: exactly one of us and a receiver that frees it at this moment takes it off its owner.
            if meta
                .owner
                .compare_exchange(owner, slot::OWNER_NONE, Ordering::AcqRel, Ordering::Relaxed)
                .is_err()
            {
                continue;
            }
            // Release: descriptors that still name the old generation are stale from now on.
            meta.generation.fetch_add(1, Ordering::Release);
            // AcqRel: as in `release`. A slot that is free and still has an owner is on no list yet: its receiver died
            // between the two (rapace frees in that order; we never leave such a slot).
            meta.state.swap(slot::STATE_FREE, Ordering::AcqRel);
            freed += usize::from(self.push(class, index).is_ok());
        }
        freed
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
            match meta.state.load(Ordering::Relaxed) {
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
        self.classes.iter().enumerate().flat_map(|(number, class)| {
            class
                .extents
                .iter()
                .enumerate()
                .flat_map(move |(id, extent)| {
                    (0..extent.slots)
                        .map(move |slot| (number as u32, (id as u32) << class.shift | slot))
                })
        })
    }

    fn class(&self, number: u32, index: u32) -> Result<&Class, SlotError> {
        self.classes
            .get(number as usize)
            .ok_or(SlotError::NoSuchSlot {
                class: number,
                index,
            })
    }

    fn meta(&self, number: u32, index: u32) -> Result<Meta<'_>, SlotError> {
        let class = self.class(number, index)?;
        let missing = SlotError::NoSuchSlot {
            class: number,
            index,
        };
        let (extent, slot) = class.locate(index).ok_or(missing)?;
        let words = self
            .map
            .at::<[AtomicU32; 4]>("slot", extent.meta + slot as usize * slot::META_SIZE)
            .map_err(|_| missing)?;
        let [generation, state, next_free, owner] = words;
        Ok(Meta {
            generation,
            state,
            next_free,
            owner,
        })
    }

    /// Where the payload's bytes are, all of them within the slot.
    fn data(&self, slot: SlotRef, offset: u32, len: u32) -> Result<*mut u8, SlotError> {
        let missing = SlotError::NoSuchSlot {
            class: slot.class,
            index: slot.index,
        };
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

    fn expect(&self, slot: SlotRef, state: u32) -> Result<Meta<'_>, SlotError> {
        let meta = self.meta(slot.class, slot.index)?;
        // Acquire: pairs with the Release of the allocation; who matches the generation sees its owner.
        let found = meta.generation.load(Ordering::Acquire);
        if found != slot.generation {
            return Err(SlotError::Stale {
                class: slot.class,
                index: slot.index,
                expected: slot.generation,
                found,
            });
        }
        // Acquire: pairs with `turn` of the sender; the payload is there.
        let found = meta.state.load(Ordering::Acquire);
        if found != state {
            return Err(SlotError::State {
                class: slot.class,
                index: slot.index,
                expected: state,
                found,
            });
        }
        Ok(meta)
    }

    fn turn(&self, slot: SlotRef, from: u32, to: u32) -> Result<Meta<'_>, SlotError> {
        let meta = self.expect(slot, from)?;
        // AcqRel: Release makes the payload visible with the state, Acquire what the other side did before.
        match meta
            .state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
        {
            Ok(_) => Ok(meta),
            Err(found) => Err(SlotError::State {
                class: slot.class,
                index: slot.index,
                expected: from,
                found,
            }),
        }
    }

    fn pop(&self, number: u32, class: &Class) -> Result<Option<u32>, SlotError> {
        let stack = FreeStack {
            head: self.free_head(number, class)?,
            next: |index| Some(self.meta(number, index).ok()?.next_free),
        };
        stack.pop().map_err(|bad| SlotError::NoSuchSlot {
            class: number,
            index: bad.0,
        })
    }

    fn push(&self, number: u32, index: u32) -> Result<(), SlotError> {
        let class = self.class(number, index)?;
        let stack = FreeStack {
            head: self.free_head(number, class)?,
            next: |index| Some(self.meta(number, index).ok()?.next_free),
        };
        let was_empty = stack.push(index).map_err(|bad| SlotError::NoSuchSlot {
            class: number,
            index: bad.0,
        })?;
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
        Ok(())
    }

    fn available(&self, class: &Class) -> Option<&AtomicU32> {
        self.map
            .at("size class", class.header + self.fields.slot_available)
            .ok()
    }

    fn free_head(&self, number: u32, class: &Class) -> Result<&AtomicU64, SlotError> {
        self.map
            .at("size class", class.header + self.fields.free_head)
            .map_err(|_| SlotError::NoSuchSlot {
                class: number,
                index: class::NO_SLOT,
            })
    }
}

/// Which layout the hub has: an extent's metadata never starts at 0, which is what the standard field reads in a hub of
/// rapace 0.5.
fn fields_of(map: &Mapping, headers: usize) -> Result<SlotFields, HubError> {
    // Relaxed: never changed after the hub was made.
    let start = map
        .at::<AtomicU64>("size class", headers + class::EXTENT_OFFSETS)?
        .load(Ordering::Relaxed);
    let start = usize::try_from(start).unwrap_or(usize::MAX);
    map.range("extent", start, extent::HEADER_SIZE)?;
    let standard = map
        .at::<AtomicU32>("extent", start + SlotFields::STANDARD.meta_offset)?
        .load(Ordering::Relaxed);
    Ok(if standard == 0 {
        SlotFields::RAPACE_05
    } else {
        SlotFields::STANDARD
    })
}

impl Class {
    fn read(map: &Mapping, header: usize, at: &SlotFields) -> Result<Self, HubError> {
        // Relaxed: written when the hub was made, or an extent was added, and checked here.
        let part = "size class";
        let slot_size = map
            .at::<AtomicU32>(part, header + class::SLOT_SIZE)?
            .load(Ordering::Relaxed);
        let shift = map
            .at::<AtomicU8>(part, header + at.extent_slot_shift)?
            .load(Ordering::Relaxed);
        check("slot_size", slot_size.into(), slot_size != 0)?;
        check(
            "extent_slot_shift",
            shift.into(),
            u32::from(shift) < desc::SLOT_CLASS_SHIFT,
        )?;
        let shift = u32::from(shift);
        let offsets =
            map.slice::<AtomicU64>(part, header + class::EXTENT_OFFSETS, class::MAX_EXTENTS)?;
        let extents = offsets
            .iter()
            // Acquire: pairs with the Release of a host that adds an extent; its header is there.
            .map(|offset| offset.load(Ordering::Acquire))
            .take_while(|offset| *offset != 0)
            .map(|offset| {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                Extent::read(map, start, (slot_size, shift), at)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            header,
            slot_size,
            shift,
            extents,
        })
    }

    fn total(&self) -> u32 {
        self.extents
            .iter()
            .fold(0, |sum, extent| sum.saturating_add(extent.slots))
    }

    fn locate(&self, index: u32) -> Option<(&Extent, u32)> {
        let extent = self.extents.get((index >> self.shift) as usize)?;
        let slot = index & ((1 << self.shift) - 1);
        (slot < extent.slots).then_some((extent, slot))
    }
}

impl Extent {
    fn read(
        map: &Mapping,
        start: usize,
        (slot_size, shift): (u32, u32),
        at: &SlotFields,
    ) -> Result<Self, HubError> {
        let part = "extent";
        map.range(part, start, extent::HEADER_SIZE)?;
        let get = |field| -> Result<u32, HubError> {
            Ok(map
                .at::<AtomicU32>(part, start + field)?
                .load(Ordering::Relaxed))
        };
        let slots = get(at.slot_count)?;
        check(
            "slot_count",
            slots.into(),
            slots != 0 && slots <= 1 << shift,
        )?;
        let meta = start.saturating_add(get(at.meta_offset)? as usize);
        let data = start.saturating_add(get(at.data_offset)? as usize);
        map.slice::<[AtomicU32; 4]>("slot metadata", meta, slots as usize)?;
        map.range(
            "slot data",
            data,
            (slots as usize).saturating_mul(slot_size as usize),
        )?;
        Ok(Self { slots, meta, data })
    }
}

fn check(field: &'static str, value: u64, right: bool) -> Result<(), HubError> {
    if right {
        Ok(())
    } else {
        Err(HubError::Value {
            field,
            value,
            rule: "no hub has such a size class",
        })
    }
}
