//! Ways into the kernel that hooks on the system calls of 64-bit programs do not see.

use rustix::fs::{Dir, OFlags};

use super::{MAX_FDS, Process};

impl Process {
    /// Which of them it has, in words.
    pub fn hidden_calls(&self) -> Vec<&'static str> {
        let mut hidden = Vec::new();
        if self.has_io_uring() {
            hidden.push("uses io_uring");
        }
        // And not its executable: that may be on a server that does not answer.
        let mut vector = Vec::new();
        if self.read_into("auxv", &mut vector).is_ok() && is_32_bit(&vector) {
            hidden.push("is a 32-bit program");
        }
        hidden
    }

    fn has_io_uring(&self) -> bool {
        let Ok(fds) = self.open_at("fd", OFlags::RDONLY | OFlags::DIRECTORY) else {
            return false;
        };
        let Ok(entries) = Dir::read_from(&fds) else {
            return false;
        };
        entries.take(MAX_FDS).flatten().any(|entry| {
            let link = rustix::fs::readlinkat(&fds, entry.file_name(), Vec::new());
            link.is_ok_and(|link| link.to_bytes() == b"anon_inode:[io_uring]")
        })
    }
}

/// Whether an auxiliary vector is one of pairs of 32 bits. Its first key is small in both, and the first value is an
/// address or a set of bits, and not 0: a key of 64 bits has its upper half there.
fn is_32_bit(vector: &[u8]) -> bool {
    cfg!(target_endian = "little")
        && vector
            .get(4..8)
            .is_some_and(|upper| upper.iter().any(|byte| *byte != 0))
}

#[cfg(test)]
mod tests {
    use std::os::fd::{FromRawFd as _, OwnedFd};

    use super::*;

    #[test]
    fn the_width_of_a_program_is_that_of_its_auxiliary_vector() {
        let wide = [33_u64, 0x7fff_0000_1000, 16, 0x1f8b_fbff];
        let narrow = [32_u32, 0xf7f2_a000, 33, 0xf7f2_9000];
        assert!(!is_32_bit(&wide.map(u64::to_le_bytes).concat()));
        assert!(is_32_bit(&narrow.map(u32::to_le_bytes).concat()));
        assert!(!is_32_bit(&[]));
        assert!(!is_32_bit(&[32, 0, 0, 0]));
    }

    #[test]
    fn an_io_uring_is_seen_while_it_is_there() {
        let process = Process::open(std::process::id()).unwrap();
        assert_eq!(process.hidden_calls(), [""; 0]);
        // `struct io_uring_params`, zeroed: no special wishes.
        let mut parameters = [0_u64; 15];
        // SAFETY: the kernel reads and fills in 120 bytes, which are there.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: made above, and nobody else has it.
        let ring = unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) };
        assert_eq!(process.hidden_calls(), ["uses io_uring"]);
        drop(ring);
        assert_eq!(process.hidden_calls(), [""; 0]);
    }
}
