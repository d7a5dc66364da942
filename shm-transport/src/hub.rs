//! The hub file: created, opened and checked; and the views into it.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::alloc::HubAllocator;
use crate::error::HubError;
use crate::layout::{self, SlotFields, class, desc, extent, hub, peer, ring, slot};
use crate::map::Mapping;
use crate::peer::PeerEntry;
use crate::view::DescRing;

/// What a new hub shall look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HubConfig {
    /// Peers that it has room for, 1 to 32.
    pub max_peers: u16,
    /// Descriptors in each ring, a power of two.
    pub ring_capacity: u32,
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            max_peers: layout::MAX_PEERS,
            ring_capacity: layout::DEFAULT_RING_CAPACITY,
        }
    }
}

/// Where the parts of a hub are, checked against the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) max_peers: u16,
    pub(crate) ring_capacity: u32,
    pub(crate) peer_table: usize,
    pub(crate) ring_region: usize,
    pub(crate) size_classes: usize,
    pub(crate) extents: usize,
}

impl Geometry {
    fn of(config: HubConfig) -> Result<Self, HubError> {
        let HubConfig {
            max_peers,
            ring_capacity,
        } = config;
        if !(1..=layout::MAX_PEERS).contains(&max_peers) {
            return Err(HubError::Value {
                field: "max_peers",
                value: max_peers.into(),
                rule: "it must be 1 to 32",
            });
        }
        if !ring_capacity.is_power_of_two() || ring_capacity > 1 << 20 {
            return Err(HubError::Value {
                field: "ring_capacity",
                value: ring_capacity.into(),
                rule: "it must be a power of two of at most 1048576",
            });
        }
        let peers = usize::from(max_peers);
        let peer_table = hub::SIZE;
        let ring_region = peer_table + peers * peer::SIZE;
        let size_classes = ring_region + peers * 2 * ring::size(ring_capacity);
        Ok(Self {
            max_peers,
            ring_capacity,
            peer_table,
            ring_region,
            size_classes,
            extents: size_classes + class::COUNT * class::SIZE,
        })
    }

    fn ring_offset(&self, id: u16, which: usize) -> usize {
        self.ring_region + (usize::from(id) * 2 + which) * ring::size(self.ring_capacity)
    }
}

/// Bytes of an extent.
fn extent_size(slot_size: u32, slots: u32) -> usize {
    extent::HEADER_SIZE + slots as usize * (slot::META_SIZE + slot_size as usize)
}

/// A mapped hub.
///
/// Nothing in the file is believed: offsets, lengths and indexes are checked before they are used, and what does not
/// fit is an error. One thing cannot be checked: whoever may write the file can also cut it short, and then touching
/// what is gone ends the process (SIGBUS). So give the file to nobody but its host and plugins.
#[derive(Debug)]
pub struct Hub {
    map: Arc<Mapping>,
    geometry: Geometry,
    allocator: HubAllocator,
    path: PathBuf,
}

impl Hub {
    /// Creates the file, or overwrites one that is there.
    ///
    /// # Errors
    ///
    /// A configuration that no hub can have, or a file that cannot be made.
    pub fn create(path: impl AsRef<Path>, config: HubConfig) -> Result<Self, HubError> {
        Self::create_with(path, config, SlotFields::STANDARD)
    }

    /// The same with the slots' headers as the plugins expect them: [`SlotFields::STANDARD`], or
    /// [`SlotFields::RAPACE_05`] for plugins that use rapace 0.5. [`open`](Self::open) finds out by itself.
    ///
    /// # Errors
    ///
    /// As for [`create`](Self::create).
    pub fn create_with(
        path: impl AsRef<Path>,
        config: HubConfig,
        fields: SlotFields,
    ) -> Result<Self, HubError> {
        let path = path.as_ref();
        let geometry = Geometry::of(config)?;
        let size = class::DEFAULTS
            .iter()
            .fold(geometry.extents, |end, (size, slots)| {
                end + extent_size(*size, *slots)
            });
        let failed = |action| {
            move |source| HubError::File {
                action,
                path: path.to_owned(),
                source,
            }
        };
        // Removed first: a process that still maps an older hub of this name keeps its own file.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("replace")(error));
            }
            _ => {}
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(failed("create"))?;
        file.set_len(size as u64).map_err(failed("size"))?;
        let map = Mapping::new(&file).map_err(failed("map"))?;
        write_header(&map, &geometry, size)?;
        write_peers(&map, &geometry)?;
        write_classes(&map, &geometry, &fields)?;
        Self::view(map, geometry, path)
    }

    /// Opens a hub that another process created.
    ///
    /// # Errors
    ///
    /// A file that is not there, or is not a hub of version 1, or does not contain what its header says.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, HubError> {
        let path = path.as_ref();
        let failed = |action| {
            move |source| HubError::File {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(failed("open"))?;
        let map = Mapping::new(&file).map_err(failed("map"))?;
        let geometry = read_header(&map)?;
        Self::view(map, geometry, path)
    }

    fn view(map: Mapping, geometry: Geometry, path: &Path) -> Result<Self, HubError> {
        let map = Arc::new(map);
        let allocator = HubAllocator::new(Arc::clone(&map), geometry.size_classes)?;
        Ok(Self {
            map,
            geometry,
            allocator,
            path: path.to_owned(),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Peers that the hub has room for.
    pub fn max_peers(&self) -> u16 {
        self.geometry.max_peers
    }

    /// Descriptors in each ring.
    pub fn ring_capacity(&self) -> u32 {
        self.geometry.ring_capacity
    }

    /// The payload slots.
    pub fn allocator(&self) -> &HubAllocator {
        &self.allocator
    }

    /// A peer's entry.
    ///
    /// # Errors
    ///
    /// An id that the hub has no entry for.
    pub fn peer(&self, id: u16) -> Result<PeerEntry, HubError> {
        self.check(id)?;
        let offset = self.geometry.peer_table + usize::from(id) * peer::SIZE;
        PeerEntry::new(Arc::clone(&self.map), offset, id)
    }

    /// The ring peer -> host.
    ///
    /// # Errors
    ///
    /// An id that the hub has no entry for.
    pub fn send_ring(&self, id: u16) -> Result<DescRing, HubError> {
        self.ring(id, 0)
    }

    /// The ring host -> peer.
    ///
    /// # Errors
    ///
    /// An id that the hub has no entry for.
    pub fn recv_ring(&self, id: u16) -> Result<DescRing, HubError> {
        self.ring(id, 1)
    }

    fn ring(&self, id: u16, which: usize) -> Result<DescRing, HubError> {
        self.check(id)?;
        DescRing::new(
            Arc::clone(&self.map),
            self.geometry.ring_offset(id, which),
            self.geometry.ring_capacity,
        )
    }

    fn check(&self, id: u16) -> Result<(), HubError> {
        let max = self.geometry.max_peers;
        if id < max {
            Ok(())
        } else {
            Err(HubError::NoSuchPeer { id, max })
        }
    }

    pub(crate) fn active_peers(&self) -> Result<&AtomicU16, HubError> {
        self.map.at("active_peers", hub::ACTIVE_PEERS)
    }

    pub(crate) fn peer_id_counter(&self) -> Result<&AtomicU16, HubError> {
        self.map.at("peer_id_counter", hub::PEER_ID_COUNTER)
    }
}

/// Relaxed stores throughout: nobody has the file yet, and who opens it later is told so by the host in ways that
/// synchronize (a new process, a pipe).
fn put32(map: &Mapping, offset: usize, value: u32) -> Result<(), HubError> {
    map.at::<AtomicU32>("field", offset)?
        .store(value, Ordering::Relaxed);
    Ok(())
}

fn put64(map: &Mapping, offset: usize, value: u64) -> Result<(), HubError> {
    map.at::<AtomicU64>("field", offset)?
        .store(value, Ordering::Relaxed);
    Ok(())
}

fn write_header(map: &Mapping, geometry: &Geometry, size: usize) -> Result<(), HubError> {
    put64(map, hub::MAGIC, u64::from_ne_bytes(layout::MAGIC))?;
    put32(map, hub::VERSION, layout::VERSION)?;
    map.at::<AtomicU16>("max_peers", hub::MAX_PEERS)?
        .store(geometry.max_peers, Ordering::Relaxed);
    put64(map, hub::CURRENT_SIZE, size as u64)?;
    put32(map, hub::EXTENT_COUNT, class::COUNT as u32)?;
    put32(map, hub::RING_CAPACITY, geometry.ring_capacity)?;
    put64(map, hub::PEER_TABLE_OFFSET, geometry.peer_table as u64)?;
    put64(map, hub::RING_REGION_OFFSET, geometry.ring_region as u64)?;
    put64(map, hub::SIZE_CLASS_OFFSET, geometry.size_classes as u64)?;
    put64(map, hub::EXTENT_REGION_OFFSET, geometry.extents as u64)
}

fn write_peers(map: &Mapping, geometry: &Geometry) -> Result<(), HubError> {
    for id in 0..geometry.max_peers {
        let entry = geometry.peer_table + usize::from(id) * peer::SIZE;
        let (send, recv) = (geometry.ring_offset(id, 0), geometry.ring_offset(id, 1));
        put64(map, entry + peer::SEND_RING_OFFSET, send as u64)?;
        put64(map, entry + peer::RECV_RING_OFFSET, recv as u64)?;
        put32(map, send + ring::CAPACITY, geometry.ring_capacity)?;
        put32(map, recv + ring::CAPACITY, geometry.ring_capacity)?;
    }
    Ok(())
}

fn write_classes(map: &Mapping, geometry: &Geometry, at: &SlotFields) -> Result<(), HubError> {
    let mut start = geometry.extents;
    for (number, (slot_size, slots)) in class::DEFAULTS.into_iter().enumerate() {
        let header = geometry.size_classes + number * class::SIZE;
        put32(map, header + class::SLOT_SIZE, slot_size)?;
        // Shift, number of extents and padding share a word; the counts of the defaults are powers of two.
        let mut shift = [slots.ilog2() as u8, 0, 0, 0];
        if *at == SlotFields::RAPACE_05 {
            put32(map, header + 4, slots)?;
        } else {
            shift[1] = 1;
        }
        put32(
            map,
            header + at.extent_slot_shift,
            u32::from_ne_bytes(shift),
        )?;
        put32(map, header + at.total_slots, slots)?;
        // The first slot is on top, as if all had been pushed once.
        put64(map, header + at.free_head, 1 << 32)?;
        put64(map, header + class::EXTENT_OFFSETS, start as u64)?;
        write_extent(map, start, (number as u8, slot_size, slots), at)?;
        start += extent_size(slot_size, slots);
    }
    Ok(())
}

fn write_extent(
    map: &Mapping,
    start: usize,
    (class, slot_size, slots): (u8, u32, u32),
    at: &SlotFields,
) -> Result<(), HubError> {
    let data = extent::HEADER_SIZE as u32 + slots * slot::META_SIZE as u32;
    put32(
        map,
        start + extent::SIZE_CLASS,
        u32::from_ne_bytes([class, 0, 0, 0]),
    )?;
    if *at == SlotFields::RAPACE_05 {
        put32(map, start + 12, slot_size)?;
    }
    put32(map, start + at.slot_count, slots)?;
    put32(map, start + at.meta_offset, extent::HEADER_SIZE as u32)?;
    put32(map, start + at.data_offset, data)?;
    for index in 0..slots {
        let meta = start + extent::HEADER_SIZE + index as usize * slot::META_SIZE;
        let next = if index + 1 < slots {
            index + 1
        } else {
            class::NO_SLOT
        };
        put32(map, meta + slot::NEXT_FREE, next)?;
        put32(map, meta + slot::OWNER_PEER, slot::OWNER_NONE)?;
    }
    Ok(())
}

fn read_header(map: &Mapping) -> Result<Geometry, HubError> {
    // Acquire is not needed: what was written before the file was handed over is visible, see `put32`.
    let get32 = |offset| -> Result<u32, HubError> {
        Ok(map
            .at::<AtomicU32>("hub header", offset)?
            .load(Ordering::Relaxed))
    };
    let get64 = |offset| -> Result<u64, HubError> {
        Ok(map
            .at::<AtomicU64>("hub header", offset)?
            .load(Ordering::Relaxed))
    };
    map.range("hub header", 0, hub::SIZE)?;
    if get64(hub::MAGIC)?.to_ne_bytes() != layout::MAGIC {
        return Err(HubError::Magic);
    }
    let version = get32(hub::VERSION)?;
    if version >> 16 != u32::from(layout::VERSION_MAJOR) {
        return Err(HubError::Version(version));
    }
    let max_peers = map
        .at::<AtomicU16>("hub header", hub::MAX_PEERS)?
        .load(Ordering::Relaxed);
    let geometry = Geometry::of(HubConfig {
        max_peers,
        ring_capacity: get32(hub::RING_CAPACITY)?,
    })?;
    // Everything up to the extents stands at places that follow from the two numbers: peers that exist compute
    // them, so a header that says otherwise would make them and us use different memory.
    for (field, offset, expected) in [
        (
            "peer_table_offset",
            hub::PEER_TABLE_OFFSET,
            geometry.peer_table,
        ),
        (
            "ring_region_offset",
            hub::RING_REGION_OFFSET,
            geometry.ring_region,
        ),
        (
            "size_class_offset",
            hub::SIZE_CLASS_OFFSET,
            geometry.size_classes,
        ),
        (
            "extent_region_offset",
            hub::EXTENT_REGION_OFFSET,
            geometry.extents,
        ),
    ] {
        let value = get64(offset)?;
        if value != expected as u64 {
            return Err(HubError::Value {
                field,
                value,
                rule: "it does not follow from max_peers and ring_capacity",
            });
        }
    }
    map.range("hub up to the extents", 0, geometry.extents)?;
    Ok(geometry)
}

const _: () = assert!(desc::SIZE == 64 && peer::SIZE == 64 && class::SIZE.is_multiple_of(64));
