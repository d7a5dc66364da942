//! Where the parts of a hub are, from a header that may say anything.

use shm_transport::layout::{self, class, desc, hub, peer, ring};
use shmtrace_engine::{Direction, PeerId};

use super::HubProblem;

/// Greatest ring capacity that is accepted: 256 times the default.
pub const MAX_RING_CAPACITY: u32 = 65_536;
/// Most bytes of the control part: 32 peers' rings of the greatest capacity, and room for the rest.
const MAX_CONTROL: u64 = 512 << 20;

/// A validated header: every place it names lies within the file, and no sum of them overflows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// Major version in the upper half.
    pub version: u32,
    /// Feature flags.
    pub flags: u32,
    /// Entries of the peer table.
    pub max_peers: u16,
    /// Descriptors of a ring.
    pub ring_capacity: u32,
    /// File offset of the peer table.
    pub peer_table: u64,
    /// File offset of the first ring.
    pub ring_region: u64,
    /// File offset of the size class headers.
    pub size_classes: u64,
    /// File offset of the first extent.
    pub extents: u64,
}

/// A header as it stands in the file, believed in nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// It begins with `RAPAHUB`.
    pub has_magic: bool,
    /// `major << 16 | minor`.
    pub version: u32,
    /// Feature flags.
    pub flags: u32,
    /// Entries of the peer table.
    pub max_peers: u16,
    /// Peers that are attached.
    pub active_peers: u16,
    /// The next peer id.
    pub peer_id_counter: u16,
    /// Bytes of the file in use.
    pub current_size: u64,
    /// Extents of all classes.
    pub extent_count: u32,
    /// Descriptors of a ring.
    pub ring_capacity: u32,
    /// File offset of the peer table.
    pub peer_table: u64,
    /// File offset of the first ring.
    pub ring_region: u64,
    /// File offset of the size class headers.
    pub size_classes: u64,
    /// File offset of the first extent.
    pub extents: u64,
}

impl Header {
    /// From the first bytes of a file.
    pub fn parse(bytes: &[u8; hub::SIZE]) -> Self {
        let u16_at = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            has_magic: bytes[hub::MAGIC..hub::MAGIC + 8] == layout::MAGIC,
            version: u32_at(bytes, hub::VERSION),
            flags: u32_at(bytes, hub::FLAGS),
            max_peers: u16_at(hub::MAX_PEERS),
            active_peers: u16_at(hub::ACTIVE_PEERS),
            peer_id_counter: u16_at(hub::PEER_ID_COUNTER),
            current_size: u64_at(bytes, hub::CURRENT_SIZE),
            extent_count: u32_at(bytes, hub::EXTENT_COUNT),
            ring_capacity: u32_at(bytes, hub::RING_CAPACITY),
            peer_table: u64_at(bytes, hub::PEER_TABLE_OFFSET),
            ring_region: u64_at(bytes, hub::RING_REGION_OFFSET),
            size_classes: u64_at(bytes, hub::SIZE_CLASS_OFFSET),
            extents: u64_at(bytes, hub::EXTENT_REGION_OFFSET),
        }
    }

    /// Major and minor version.
    pub fn version(&self) -> (u16, u16) {
        ((self.version >> 16) as u16, self.version as u16)
    }
}

impl Geometry {
    /// Reads and checks a header of a file of `size` bytes.
    pub fn parse(bytes: &[u8; hub::SIZE], size: u64) -> Result<Self, HubProblem> {
        let header = Header::parse(bytes);
        if !header.has_magic {
            return Err(HubProblem::NoMagic);
        }
        let (major, minor) = header.version();
        if major != layout::VERSION_MAJOR {
            return Err(HubProblem::Version { major, minor });
        }
        let geometry = Self {
            version: header.version,
            flags: header.flags,
            max_peers: header.max_peers,
            ring_capacity: header.ring_capacity,
            peer_table: header.peer_table,
            ring_region: header.ring_region,
            size_classes: header.size_classes,
            extents: header.extents,
        };
        geometry.check(size)?;
        Ok(geometry)
    }

    fn check(&self, size: u64) -> Result<(), HubProblem> {
        let absurd = |field, value, allowed| {
            Err(HubProblem::Absurd {
                field,
                value,
                allowed,
            })
        };
        if !(1..=layout::MAX_PEERS).contains(&self.max_peers) {
            return absurd("max_peers", self.max_peers.into(), "1 to 32");
        }
        if !self.ring_capacity.is_power_of_two() || self.ring_capacity > MAX_RING_CAPACITY {
            return absurd(
                "ring_capacity",
                self.ring_capacity.into(),
                "a power of two up to 65536",
            );
        }
        let mut end_before = hub::SIZE as u64;
        for (field, _, offset, bytes) in self.parts() {
            if !offset.is_multiple_of(64) || offset < end_before {
                return absurd(field, offset, "a multiple of 64 after the part before it");
            }
            let end = offset.checked_add(bytes).filter(|end| *end <= MAX_CONTROL);
            let Some(end) = end else {
                return absurd(field, offset, "within the first 512 MiB");
            };
            end_before = end;
        }
        for (_, part, offset, bytes) in self.parts() {
            let needed = offset + bytes;
            if needed > size {
                return Err(HubProblem::Truncated { part, needed, size });
            }
        }
        Ok(())
    }

    /// Field, name, offset and bytes of the parts, in the order in which they lie.
    fn parts(&self) -> [(&'static str, &'static str, u64, u64); 4] {
        [
            (
                "peer_table_offset",
                "peer table",
                self.peer_table,
                self.peer_table_bytes(),
            ),
            (
                "ring_region_offset",
                "rings",
                self.ring_region,
                self.ring_region_bytes(),
            ),
            (
                "size_class_offset",
                "size class headers",
                self.size_classes,
                class_header_bytes(),
            ),
            ("extent_region_offset", "extents", self.extents, 0),
        ]
    }

    /// Bytes of the control part, from the file's begin to the end of the class headers.
    pub fn control_bytes(&self) -> usize {
        (self.size_classes + class_header_bytes()) as usize
    }

    /// File offset of a peer's entry; `None` if the table has no such peer.
    pub fn peer_entry(&self, id: PeerId) -> Option<u64> {
        (id.0 < self.max_peers).then(|| self.peer_table + u64::from(id.0) * peer::SIZE as u64)
    }

    /// File offset of a lane's ring; `None` if the table has no such peer.
    pub fn ring(&self, id: PeerId, direction: Direction) -> Option<u64> {
        let second = match direction {
            Direction::ToHost => 0,
            Direction::ToPeer => 1,
        };
        let number = u64::from(id.0) * 2 + second;
        (id.0 < self.max_peers).then(|| self.ring_region + number * self.ring_bytes())
    }

    /// File offset of a descriptor of a ring at `ring`, for an index that only grows.
    pub fn descriptor(&self, ring: u64, index: u64) -> u64 {
        let slot = index & u64::from(self.ring_capacity - 1);
        ring + ring::HEADER_SIZE as u64 + slot * desc::SIZE as u64
    }

    /// File offset of a size class's header.
    pub fn class_header(&self, number: usize) -> u64 {
        self.size_classes + (number * class::SIZE) as u64
    }

    /// Whether everything is where it is in `other`.
    pub fn same_places(&self, other: &Self) -> bool {
        self == other
    }

    fn ring_bytes(&self) -> u64 {
        ring::size(self.ring_capacity) as u64
    }

    fn ring_region_bytes(&self) -> u64 {
        u64::from(self.max_peers) * 2 * self.ring_bytes()
    }

    fn peer_table_bytes(&self) -> u64 {
        u64::from(self.max_peers) * peer::SIZE as u64
    }
}

fn class_header_bytes() -> u64 {
    (class::COUNT * class::SIZE) as u64
}

fn u32_at(header: &[u8; hub::SIZE], at: usize) -> u32 {
    u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

fn u64_at(header: &[u8; hub::SIZE], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&header[at..at + 8]);
    u64::from_ne_bytes(word)
}
