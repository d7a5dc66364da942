//! Which pages of the mapping can be touched without making one.
//!
//! A page that this process's own page table has cannot fault, so it cannot be allocated by a load: one read of
//! `/proc/self/pagemap` tells that for the whole control part (3 us; `mincore` takes 13, as it looks up each page that is
//! missing in the file). A page that is missing in the table but there in the file is touched once, and is in the table
//! from then on. Between the look and the load the file can lose a page: a window of microseconds that costs its owner
//! one page of zeros at most.

use std::{cell::Cell, fs::File, os::unix::fs::FileExt as _, sync::OnceLock};

use memmap2::MmapRaw;

/// Bytes of an entry of `/proc/self/pagemap`.
const ENTRY: usize = 8;
/// Bit 63 of an entry, in its last byte on a little-endian machine: the page is in the page table.
const PRESENT: u8 = 0x80;

/// What the last look showed.
#[derive(Debug)]
pub(super) struct Residency {
    entries: Vec<u8>,
    page: usize,
    /// The last look succeeded, so `entries` says something.
    known: bool,
    /// The page that was last found in the file but not in the table, plus one; it needs no second question.
    last_found: Cell<usize>,
}

impl Residency {
    pub(super) fn new(pages: usize) -> Self {
        Self {
            entries: vec![0; pages * ENTRY],
            page: rustix::param::page_size(),
            known: false,
            last_found: Cell::new(0),
        }
    }

    /// Reads the page table anew.
    pub(super) fn look(&mut self, mapping: &MmapRaw) {
        let at = mapping.as_ptr().addr() / self.page * ENTRY;
        self.known = pagemap()
            .is_some_and(|pagemap| pagemap.read_exact_at(&mut self.entries, at as u64).is_ok());
        self.last_found.set(0);
    }

    /// Whether a load at `place` (bytes from the mapping's begin) allocates nothing in the file.
    pub(super) fn may_be_touched(&self, place: usize, mapping: &MmapRaw) -> bool {
        let number = place / self.page;
        let last = number * ENTRY
            + if cfg!(target_endian = "little") {
                ENTRY - 1
            } else {
                0
            };
        let Some(entry) = self.entries.get(last) else {
            return false;
        };
        if self.known && entry & PRESENT != 0 || self.last_found.get() == number + 1 {
            return true;
        }
        let mut resident = 0_u8;
        // SAFETY: the page is one of the mapping's (checked above), and one byte is what one page needs. mincore
        // looks at tables only and touches no page.
        let result = unsafe {
            let start = mapping.as_mut_ptr().add(number * self.page);
            libc::mincore(start.cast(), self.page, &raw mut resident)
        };
        let found = result == 0 && resident & 1 == 1;
        if found {
            self.last_found.set(number + 1);
        }
        found
    }
}

/// Kept open: it shows this process's table for as long as the process lives, also after it gave up its privileges.
fn pagemap() -> Option<&'static File> {
    static PAGEMAP: OnceLock<Option<File>> = OnceLock::new();
    PAGEMAP
        .get_or_init(|| File::open("/proc/self/pagemap").ok())
        .as_ref()
}
