//! The mapped file: the only place where offsets become references.

use std::fs::File;
use std::io;
use std::slice;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use memmap2::{MmapOptions, MmapRaw};

use crate::error::HubError;

/// Types that may lie in memory that other processes write: any bits are a value, and reads are atomic.
///
/// # Safety
///
/// All bit patterns must be valid, and all access through a shared reference atomic.
pub(crate) unsafe trait Shared {}

// SAFETY: integers, and atomic.
unsafe impl Shared for AtomicU8 {}
// SAFETY: integers, and atomic.
unsafe impl Shared for AtomicU16 {}
// SAFETY: integers, and atomic.
unsafe impl Shared for AtomicU32 {}
// SAFETY: integers, and atomic.
unsafe impl Shared for AtomicU64 {}
// SAFETY: an array of what is shared.
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}

/// A hub file, mapped for reading and writing. Its bytes may change at any time.
#[derive(Debug)]
pub(crate) struct Mapping(MmapRaw);

impl Mapping {
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        Ok(Self(MmapOptions::new().map_raw(file)?))
    }

    /// Memory that is no file.
    #[cfg(test)]
    pub(crate) fn anonymous(len: usize) -> Self {
        let memory = MmapOptions::new().len(len).map_anon();
        Self(memory.expect("there is memory").into())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// `count` values at `offset`, or an error when they are not all within the file, or not aligned.
    pub(crate) fn slice<T: Shared>(
        &self,
        part: &'static str,
        offset: usize,
        count: usize,
    ) -> Result<&[T], HubError> {
        let start = self.range(part, offset, size_of::<T>().saturating_mul(count))?;
        let start = start.cast::<T>();
        if !start.is_aligned() {
            return Err(HubError::Value {
                field: part,
                value: offset as u64,
                rule: "its offset must be aligned",
            });
        }
        // SAFETY: `range` checked that all bytes are within the mapping, which lives as long as `self`; the start
        // is aligned; `Shared` says that any bits are values and that others may write them. A file that is cut
        // short while it is mapped ends the process with SIGBUS, as documented for `Hub`.
        Ok(unsafe { slice::from_raw_parts(start, count) })
    }

    /// One value at `offset`.
    pub(crate) fn at<T: Shared>(&self, part: &'static str, offset: usize) -> Result<&T, HubError> {
        self.slice(part, offset, 1)?
            .first()
            .ok_or(HubError::Outside {
                part,
                offset: offset as u64,
                size: 0,
                file: self.len() as u64,
            })
    }

    /// Where these bytes start. What is there may change under the reader.
    pub(crate) fn range(
        &self,
        part: &'static str,
        offset: usize,
        size: usize,
    ) -> Result<*mut u8, HubError> {
        match offset.checked_add(size) {
            // SAFETY: the start is within the mapping, or one past its end.
            Some(end) if end <= self.len() => Ok(unsafe { self.0.as_mut_ptr().add(offset) }),
            _ => Err(HubError::Outside {
                part,
                offset: offset as u64,
                size: size as u64,
                file: self.len() as u64,
            }),
        }
    }
}
