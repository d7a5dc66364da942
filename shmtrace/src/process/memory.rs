//! Reading a process's memory without making it do anything: not a page is brought in for it. A page that is not there may
//! belong to a file on a server that does not answer, and whoever asks for it waits.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use rustix::fs::OFlags;

use super::Process;

/// Of an entry of `/proc/PID/pagemap`: the page is in memory, or in swap (so it is of no file).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// Entries are read so many at a time.
const ENTRIES: usize = 512;

/// A process's memory, for several reads.
pub(super) struct Memory {
    bytes: OwnedFd,
    pages: OwnedFd,
}

impl Memory {
    /// Bytes from `address` on, as far as they are there: fewer than asked for, or none, where they are not.
    pub(super) fn read(&self, address: u64, buffer: &mut [u8]) -> usize {
        let there = bytes_there(self.pages.as_fd(), address, buffer.len());
        let mut filled = 0;
        while filled < there {
            let at = address.saturating_add(filled as u64);
            match rustix::io::pread(&self.bytes, &mut buffer[filled..there], at) {
                Ok(0) | Err(_) => break,
                Ok(read) => filled += read,
            }
        }
        filled
    }
}

impl Process {
    /// Its memory.
    pub(super) fn memory(&self) -> io::Result<Memory> {
        Ok(Memory {
            bytes: self.open_at("mem", OFlags::RDONLY)?,
            pages: self.open_at("pagemap", OFlags::RDONLY)?,
        })
    }

    /// One read of it; nothing where it may not be read.
    pub(super) fn read_memory(&self, address: u64, buffer: &mut [u8]) -> usize {
        self.memory()
            .map_or(0, |memory| memory.read(address, buffer))
    }

    /// How many of these bytes are there.
    pub(super) fn bytes_there(&self, address: u64, bytes: usize) -> usize {
        self.open_at("pagemap", OFlags::RDONLY)
            .map_or(0, |pages| bytes_there(pages.as_fd(), address, bytes))
    }
}

fn bytes_there(pages: BorrowedFd<'_>, address: u64, bytes: usize) -> usize {
    let page = rustix::param::page_size() as u64;
    let Some(end) = address.checked_add(bytes as u64) else {
        return 0;
    };
    let mut number = address / page;
    let mut entries = [0; ENTRIES * 8];
    while number * page < end {
        let wanted = (end.div_ceil(page) - number).min(ENTRIES as u64) as usize;
        let read = rustix::io::pread(pages, &mut entries[..wanted * 8], number * 8);
        let read = read.unwrap_or(0);
        let there = entries[..read]
            .as_chunks::<8>()
            .0
            .iter()
            .take_while(|entry| u64::from_ne_bytes(**entry) & (PRESENT | SWAPPED) != 0)
            .count();
        number += there as u64;
        if there < wanted {
            break;
        }
    }
    usize::try_from((number * page).min(end).saturating_sub(address)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

    use super::*;

    #[test]
    fn what_is_not_there_is_not_brought_in() {
        let page = rustix::param::page_size();
        let process = Process::open(std::process::id()).unwrap();
        // SAFETY: a new mapping, of nobody else's.
        let memory = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                3 * page,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .unwrap();
        let address = memory as u64;
        // Or the kernel may bring in all of it at once.
        // SAFETY: the mapping made above.
        unsafe { rustix::mm::madvise(memory, 3 * page, rustix::mm::Advice::LinuxNoHugepage) }
            .unwrap();
        // SAFETY: within the mapping made above.
        unsafe { memory.cast::<u8>().write(7) };
        let mut buffer = vec![0; 2 * page];
        assert_eq!(process.read_memory(address, &mut buffer), page);
        assert_eq!(buffer[0], 7);
        assert_eq!(process.read_memory(address + page as u64, &mut buffer), 0);
        assert_eq!(process.bytes_there(address, 3 * page), page);
        assert_eq!(process.bytes_there(address + 8, 8), 8);
        assert_eq!(process.bytes_there(u64::MAX - 4, 8), 0);
        // SAFETY: nobody uses it any more.
        unsafe { munmap(memory, 3 * page) }.unwrap();
        assert_eq!(process.read_memory(address, &mut buffer), 0);
    }
}
