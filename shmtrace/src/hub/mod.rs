//! A hub file read from outside, by somebody who must not trust it.
//!
//! The control part (header, peer table, rings, class headers) is mapped read-only; extents are read with `pread`.
//! Whoever maps the hub for writing can truncate it, punch holes into it, replace it and write anything anywhere, at any
//! time. So: every offset is checked before it is used, a page that the file no longer has cannot kill this process
//! (`guard`), and pages that are not there are never touched, because reading a hole of a tmpfs file through a mapping
//! would allocate it in the victim's name (`Glance`).

mod check;
mod error;
mod geometry;
mod glance;
mod guard;
mod open;
mod residency;
mod slots;

use std::{cell::RefCell, fs::File, os::unix::fs::FileExt as _};

use memmap2::MmapRaw;
use shmtrace_engine::{Direction, PeerId};

pub use check::{check, waiting_descriptors};
pub use error::{HubError, HubProblem};
pub use geometry::{Geometry, Header, MAX_RING_CAPACITY};
pub use glance::{Descriptor, Glance, PeerEntry, RingView};
pub use open::looks_like_a_hub;
pub use slots::{ClassSlots, ExtentInfo, MAX_SLOTS, Slot, SlotScan};

use guard::Guard;
use residency::Residency;
use shm_transport::layout;

/// A hub file, open for reading.
#[derive(Debug)]
pub struct HubReader {
    path: String,
    file: File,
    geometry: Geometry,
    // Declared before the mapping, so that the guard is gone before the address range is.
    guard: Guard,
    control: MmapRaw,
    residency: RefCell<Residency>,
    /// Size of the file when it was opened.
    opened_size: u64,
}

impl HubReader {
    /// Where the file was found, for people.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where things are in it.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The header as it is now; `None` if it is not there any more.
    pub fn header(&self) -> Option<Header> {
        let mut header = [0; layout::hub::SIZE];
        self.file.read_exact_at(&mut header, 0).ok()?;
        Some(Header::parse(&header))
    }

    /// Bytes of the file now; 0 if that cannot be told.
    pub fn size(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    /// Whether the mapping still shows the file in full: nothing was cut off, and the header is the one that was
    /// validated.
    pub fn is_intact(&self) -> bool {
        if self.guard.has_faulted() || self.size() < self.opened_size {
            return false;
        }
        let mut header = [0; layout::hub::SIZE];
        self.file.read_exact_at(&mut header, 0).is_ok()
            && Geometry::parse(&header, self.opened_size)
                .is_ok_and(|now| now.same_places(&self.geometry))
    }

    /// A look at the control part. Costs one system call; the loads that follow cost none.
    pub fn glance(&self) -> Glance<'_> {
        Glance::new(self)
    }

    /// Peers that the table has room for.
    pub fn peers(&self) -> impl Iterator<Item = PeerId> + use<> {
        (0..self.geometry.max_peers).map(PeerId)
    }

    /// File offset of one lane's ring.
    pub fn ring_offset(&self, peer: PeerId, direction: Direction) -> Option<u64> {
        self.geometry.ring(peer, direction)
    }

    /// Bytes of the file; `None` if they are not all there.
    pub fn read_at(&self, offset: u64, bytes: usize) -> Option<Vec<u8>> {
        let mut buffer = vec![0; bytes];
        self.file.read_exact_at(&mut buffer, offset).ok()?;
        Some(buffer)
    }
}

#[cfg(test)]
pub(crate) mod fixture;

#[cfg(test)]
mod tests;
