//! Slots as users see them: one that is theirs, and how many there are.

use crate::layout::desc;

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
