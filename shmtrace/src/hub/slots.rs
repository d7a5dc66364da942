//! The slots of a hub: states, owners, and whether the free lists hold together.
//!
//! Read with `pread`, as extents can be anywhere and mostly holes. Slots change while they are read; a scan says whether
//! a class was steady (its free head, whose tag grows with each push and pop, was the same before and after), and only
//! then can a contradiction in it be a fault of the hub.

use std::os::unix::fs::FileExt as _;

use shm_transport::layout::{class, extent, slot};
use shmtrace_engine::input::ClassObservation;

use super::HubReader;

/// Slots of one class that are looked at; hubs as they are made have 1,024 in the largest class, and 16 extents at most.
pub const MAX_SLOTS: usize = 1 << 16;

/// All size classes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SlotScan {
    /// By number.
    pub classes: Vec<ClassSlots>,
}

/// One size class with its slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClassSlots {
    /// Number of the class.
    pub class: u8,
    /// Bytes of a slot.
    pub slot_size: u32,
    /// Slots, as the header says.
    pub total: u32,
    /// `tag << 32 | first free slot`.
    pub free_head: u64,
    /// Neither push nor pop happened during the scan.
    pub steady: bool,
    /// Its extents.
    pub extents: Vec<ExtentInfo>,
    /// Its slots, by global index.
    pub slots: Vec<Slot>,
    /// Slots on the free list, as far as it could be followed.
    pub listed: u32,
    /// What does not hold together.
    pub problems: Vec<String>,
}

/// An extent that could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtentInfo {
    /// File offset.
    pub offset: u64,
    /// Slots in it.
    pub slot_count: u32,
    /// File offset of the first slot's data.
    pub data: u64,
}

/// Metadata of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Global index in its class.
    pub index: u32,
    /// Grows with each allocation.
    pub generation: u32,
    /// `STATE_*` of `shm_transport::layout::slot`.
    pub state: u32,
    /// Next on the free list.
    pub next_free: u32,
    /// Who allocated it.
    pub owner: u32,
}

impl ClassSlots {
    /// Counts by state.
    pub fn observation(&self) -> ClassObservation {
        let count = |state| self.slots.iter().filter(|slot| slot.state == state).count() as u32;
        ClassObservation {
            slot_size: self.slot_size,
            total: self.total,
            free: count(slot::STATE_FREE),
            allocated: count(slot::STATE_ALLOCATED),
            in_flight: count(slot::STATE_IN_FLIGHT),
        }
    }

    /// The slot with this global index.
    pub fn slot(&self, index: u32) -> Option<&Slot> {
        self.slots
            .binary_search_by_key(&index, |slot| slot.index)
            .ok()
            .map(|at| &self.slots[at])
    }
}

/// Where the fields of class and extent headers are. Rapace 0.5 arranges them otherwise than 0.3 and 0.4, under the same
/// version number; slot metadata, rings and everything else are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// As `shm_transport::layout` has it.
    Rapace04,
    /// Class: `slot_size`, `slots_per_extent`, `extent_slot_shift` (u32), `total_slots`, `free_head`, `extent_offsets`,
    /// no count of extents. Extent: `class` (u16), `extent_index` (u16), `base_global_index`, `slot_count`, `slot_size`,
    /// `meta_offset`, `data_offset`.
    Rapace05,
}

impl Dialect {
    /// An extent of 0.5 names its slot size where the upper half of an offset (0) is in 0.4.
    fn of(class: &[u8], extent: Option<&[u8]>) -> Self {
        let slot_size = u32_at(class, class::SLOT_SIZE);
        match extent {
            Some(extent) if slot_size != 0 && u32_at(extent, 12) == slot_size => Self::Rapace05,
            _ => Self::Rapace04,
        }
    }

    fn total_slots(self, class: &[u8]) -> u32 {
        u32_at(
            class,
            if self == Self::Rapace04 {
                class::TOTAL_SLOTS
            } else {
                12
            },
        )
    }

    fn free_head(self) -> usize {
        if self == Self::Rapace04 {
            class::FREE_HEAD
        } else {
            16
        }
    }

    fn slot_shift(self, class: &[u8]) -> u32 {
        match self {
            Self::Rapace04 => u32::from(class[class::EXTENT_SLOT_SHIFT]),
            Self::Rapace05 => u32_at(class, 8),
        }
    }

    /// Extents that the class header counts.
    fn extents(self, class: &[u8]) -> usize {
        if self == Self::Rapace04 {
            usize::from(class[class::EXTENT_COUNT])
        } else {
            0
        }
    }

    /// Class number, slots, and the offsets of metadata and data within the extent.
    fn extent(self, extent: &[u8]) -> (u8, u32, u32, u32) {
        let (count, meta, data) = match self {
            Self::Rapace04 => (extent::SLOT_COUNT, extent::META_OFFSET, extent::DATA_OFFSET),
            Self::Rapace05 => (8, 16, 20),
        };
        (
            extent[extent::SIZE_CLASS],
            u32_at(extent, count),
            u32_at(extent, meta),
            u32_at(extent, data),
        )
    }
}

impl HubReader {
    /// Reads every slot's metadata: two to four system calls per class.
    pub fn scan_slots(&self) -> SlotScan {
        SlotScan {
            classes: (0..class::COUNT)
                .map(|number| self.scan_class(number))
                .collect(),
        }
    }

    fn scan_class(&self, number: usize) -> ClassSlots {
        let mut found = ClassSlots {
            class: number as u8,
            ..ClassSlots::default()
        };
        let at = self.geometry().class_header(number);
        let Some(header) = self.read_at(at, class::SIZE) else {
            found
                .problems
                .push("its header cannot be read: the file is cut short".into());
            return found;
        };
        // The first 0 ends them.
        let offsets: Vec<u64> = (0..class::MAX_EXTENTS)
            .map(|id| u64_at(&header, class::EXTENT_OFFSETS + id * 8))
            .take_while(|offset| *offset != 0)
            .collect();
        let first = offsets
            .first()
            .and_then(|offset| self.read_at(*offset, extent::HEADER_SIZE));
        let dialect = Dialect::of(&header, first.as_deref());
        let shift = dialect.slot_shift(&header);
        let extents = dialect.extents(&header);
        found.slot_size = u32_at(&header, class::SLOT_SIZE);
        found.total = dialect.total_slots(&header);
        found.free_head = u64_at(&header, dialect.free_head());
        if extents > class::MAX_EXTENTS || shift > 24 || found.slot_size == 0 {
            found.problems.push(format!(
                "its header says {extents} extents of 2^{shift} slots of {} bytes",
                found.slot_size
            ));
            return found;
        }
        for (id, offset) in (0..).zip(&offsets) {
            if let Err(problem) = self.scan_extent(&mut found, dialect, id, *offset, shift) {
                found
                    .problems
                    .push(format!("extent {id} at offset {offset}: {problem}"));
            }
        }
        if extents > offsets.len() {
            found.problems.push(format!(
                "its header says {extents} extents and has offsets of {}",
                offsets.len()
            ));
        }
        let mut again = [0; 8];
        let reread = self
            .file
            .read_exact_at(&mut again, at + dialect.free_head() as u64);
        found.steady = reread.is_ok() && u64::from_ne_bytes(again) == found.free_head;
        if found.steady {
            check_free_list(&mut found);
        }
        found
    }

    fn scan_extent(
        &self,
        found: &mut ClassSlots,
        dialect: Dialect,
        id: u32,
        offset: u64,
        shift: u32,
    ) -> Result<(), String> {
        if !offset.is_multiple_of(8) {
            return Err("is no place for an extent".into());
        }
        let header = self
            .read_at(offset, extent::HEADER_SIZE)
            .ok_or("lies outside of the file")?;
        let (class, count, meta, data) = dialect.extent(&header);
        if class != found.class {
            return Err(format!("says that it is of class {class}"));
        }
        if u64::from(count) > 1 << shift || found.slots.len() + count as usize > MAX_SLOTS {
            return Err(format!("says that it has {count} slots"));
        }
        let meta = offset.saturating_add(meta.into());
        let data = offset.saturating_add(data.into());
        let meta_bytes = count as usize * slot::META_SIZE;
        let entries = self
            .read_at(meta, meta_bytes)
            .ok_or("its slot metadata end outside of the file")?;
        let end = data.saturating_add(u64::from(count) * u64::from(found.slot_size));
        if end > self.size() || data < meta.saturating_add(meta_bytes as u64) {
            return Err("its slots end outside of the file or overlap their metadata".into());
        }
        found.extents.push(ExtentInfo {
            offset,
            slot_count: count,
            data,
        });
        for (number, entry) in (0..).zip(entries.chunks_exact(slot::META_SIZE)) {
            found.slots.push(Slot {
                index: id << shift | number,
                generation: u32_at(entry, slot::GENERATION),
                state: u32_at(entry, slot::STATE),
                next_free: u32_at(entry, slot::NEXT_FREE),
                owner: u32_at(entry, slot::OWNER_PEER),
            });
        }
        Ok(())
    }
}

/// The free list must be acyclic, lead through free slots only, and reach all of them.
fn check_free_list(found: &mut ClassSlots) {
    let mut seen = vec![false; found.slots.len()];
    let mut next = found.free_head as u32;
    let mut problem = None;
    while next != class::NO_SLOT {
        let Ok(at) = found.slots.binary_search_by_key(&next, |slot| slot.index) else {
            problem = Some(format!(
                "its free list leads to slot {next}, which does not exist"
            ));
            break;
        };
        if std::mem::replace(&mut seen[at], true) {
            problem = Some(format!("its free list leads to slot {next} twice"));
            break;
        }
        if found.slots[at].state != slot::STATE_FREE {
            problem = Some(format!(
                "its free list leads to slot {next}, which is in state {}",
                found.slots[at].state
            ));
            break;
        }
        found.listed += 1;
        next = found.slots[at].next_free;
    }
    found.problems.extend(problem.clone());
    if let Some(odd) = found
        .slots
        .iter()
        .find(|slot| slot.state > slot::STATE_IN_FLIGHT)
    {
        found.problems.push(format!(
            "slot {} is in state {}, which there is none of",
            odd.index, odd.state
        ));
    }
    let free = found
        .slots
        .iter()
        .filter(|slot| slot.state == slot::STATE_FREE)
        .count();
    if problem.is_none() && free != found.listed as usize {
        found.problems.push(format!(
            "{free} slots are free, and its free list has {}",
            found.listed
        ));
    }
    if found.slots.len() != found.total as usize {
        found.problems.push(format!(
            "its header says {} slots, its extents have {}",
            found.total,
            found.slots.len()
        ));
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(word)
}
