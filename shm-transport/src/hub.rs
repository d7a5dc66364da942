//! The hub file: created, opened and checked; and the views into it.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::alloc::HubAllocator;
use crate::error::HubError;
use crate::layout::{self, SlotFields, class, desc, hub, peer, ring};
use crate::map::Mapping;
use crate::peer::PeerEntry;
use crate::view::DescRing;

mod create;

#[cfg(test)]
use self::create::SMALL_CLASSES;
use self::create::{Classes, extent_size, write};

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

    fn file_size(&self, classes: &Classes) -> usize {
        classes.iter().fold(self.extents, |end, (size, slots)| {
            end + extent_size(*size, *slots)
        })
    }

    fn ring_offset(&self, id: u16, which: usize) -> usize {
        self.ring_region + (usize::from(id) * 2 + which) * ring::size(self.ring_capacity)
    }
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
        let size = geometry.file_size(&class::DEFAULTS);
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
        write(&map, &geometry, &fields, &class::DEFAULTS)?;
        Self::view(Arc::new(map), geometry, path)
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
        Self::view(Arc::new(map), geometry, path)
    }

    /// A hub in memory that is no file and with [`SMALL_CLASSES`], for tests under Miri, which maps no files.
    #[cfg(test)]
    pub(crate) fn in_memory(config: HubConfig, fields: SlotFields) -> Result<Self, HubError> {
        let geometry = Geometry::of(config)?;
        let map = Mapping::anonymous(geometry.file_size(&SMALL_CLASSES));
        write(&map, &geometry, &fields, &SMALL_CLASSES)?;
        Self::view(Arc::new(map), geometry, Path::new("memory"))
    }

    /// The same memory, opened as another process would.
    #[cfg(test)]
    pub(crate) fn again(&self) -> Result<Self, HubError> {
        let geometry = read_header(&self.map)?;
        Self::view(Arc::clone(&self.map), geometry, &self.path)
    }

    /// Puts a word anywhere, as an enemy would, while nobody else looks: Miri knows no atomics of mixed sizes.
    #[cfg(test)]
    pub(crate) fn poke(&self, offset: usize, value: u32) {
        let bytes = value.to_ne_bytes();
        let to = self.map.range("poke", offset, bytes.len());
        let to = to.expect("within the memory");
        // SAFETY: `range` checked that the bytes are within the mapping; there is one thread.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    fn view(map: Arc<Mapping>, geometry: Geometry, path: &Path) -> Result<Self, HubError> {
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
