//! The size classes of a hub: read and checked once, when it is opened.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::error::HubError;
use crate::layout::{SlotFields, class, desc, extent};
use crate::map::Mapping;

/// A size class, with everything that never changes read and checked once.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) header: usize,
    pub(super) slot_size: u32,
    pub(super) shift: u32,
    pub(super) extents: Vec<Extent>,
}

/// Slots that lie side by side.
#[derive(Debug)]
pub(super) struct Extent {
    pub(super) slots: u32,
    pub(super) meta: usize,
    pub(super) data: usize,
}

/// Which layout the hub has: an extent's metadata never starts at 0, which is what the standard field reads in a hub of
/// rapace 0.5.
pub(super) fn fields_of(map: &Mapping, headers: usize) -> Result<SlotFields, HubError> {
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
    pub(super) fn read(map: &Mapping, header: usize, at: &SlotFields) -> Result<Self, HubError> {
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

    pub(super) fn total(&self) -> u32 {
        self.extents
            .iter()
            .fold(0, |sum, extent| sum.saturating_add(extent.slots))
    }

    /// All global indexes of the class.
    pub(super) fn indexes(&self) -> impl Iterator<Item = u32> + '_ {
        self.extents
            .iter()
            .enumerate()
            .flat_map(move |(id, extent)| {
                (0..extent.slots).map(move |slot| (id as u32) << self.shift | slot)
            })
    }

    pub(super) fn locate(&self, index: u32) -> Option<(&Extent, u32)> {
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
