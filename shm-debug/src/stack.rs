//! Stacks of sleeping threads, read without stopping or signalling them.

use std::fs;
use std::io::{IoSliceMut, Read as _};
use std::ops::Range;
use std::process;

/// Bytes of a stack that are searched.
const DEPTH: usize = 64 << 10;
/// Return addresses that are shown.
const FRAMES: usize = 32;

/// What a thread does in the kernel, from `/proc/PID/task/TID/syscall`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// On a CPU, or about to be.
    Running,
    /// The kernel does not tell.
    Unknown,
    /// In a system call (-1: in a fault), entered at this instruction with this stack.
    Asleep { call: i64, stack: usize, at: usize },
}

impl Entry {
    pub(crate) fn parse(line: &str) -> Self {
        let mut words = line.split_whitespace();
        let Some(call) = words.next() else {
            return Self::Unknown;
        };
        if call == "running" {
            return Self::Running;
        }
        let Ok(call) = call.parse() else {
            return Self::Unknown;
        };
        let hex = |word: Option<&str>| {
            word.and_then(|word| usize::from_str_radix(word.trim_start_matches("0x"), 16).ok())
        };
        // Six arguments stand between the number and the two addresses; a fault has none.
        let at = hex(words.next_back());
        let stack = hex(words.next_back());
        match (stack, at) {
            (Some(stack), Some(at)) => Self::Asleep { call, stack, at },
            _ => Self::Unknown,
        }
    }
}

/// One line of `/proc/self/maps`.
struct Mapping {
    range: Range<usize>,
    executable: bool,
    offset: usize,
    name: String,
}

/// The address space of this process.
pub(crate) struct Maps(Vec<Mapping>);

impl Maps {
    pub(crate) fn of_this_process() -> Self {
        let mut text = Vec::new();
        // Names may be any bytes, so not `read_to_string`.
        if let Ok(mut file) = fs::File::open("/proc/self/maps") {
            let _partial_is_fine = file.read_to_end(&mut text);
        }
        Self::parse(&String::from_utf8_lossy(&text))
    }

    fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(Mapping::parse).collect())
    }

    fn at(&self, address: usize) -> Option<&Mapping> {
        self.0
            .iter()
            .find(|mapping| mapping.range.contains(&address))
    }

    /// `file+offset`, which `addr2line -e file offset` understands for position-independent code.
    pub(crate) fn place(&self, address: usize) -> String {
        match self.at(address) {
            Some(mapping) => format!(
                "{}+{:#x}",
                mapping.name.rsplit('/').next().unwrap_or_default(),
                address - mapping.range.start + mapping.offset
            ),
            None => format!("{address:#x}"),
        }
    }

    /// Where the thread is, then who called: innermost first.
    pub(crate) fn stack(&self, entry: &Entry) -> Vec<usize> {
        let &Entry::Asleep { stack, at, .. } = entry else {
            return Vec::new();
        };
        let mut found = vec![at];
        let Some(mapping) = self.at(stack) else {
            return found;
        };
        let mut bytes = vec![0; DEPTH.min(mapping.range.end - stack)];
        let read = read_own(stack, &mut bytes);
        let words = bytes[..read].chunks_exact(size_of::<usize>());
        found.extend(
            words
                .filter_map(|word| Some(usize::from_ne_bytes(word.try_into().ok()?)))
                .filter(|address| self.follows_a_call(*address))
                .take(FRAMES - 1),
        );
        found
    }

    /// Whether the instruction before this address is a call, so that it may be a return address.
    fn follows_a_call(&self, address: usize) -> bool {
        /// The longest call instruction that is looked for.
        const LONGEST: usize = 7;
        let Some(mapping) = self.at(address) else {
            return false;
        };
        if !mapping.executable || address - mapping.range.start < LONGEST {
            return false;
        }
        let mut code = [0; LONGEST];
        read_own(address - LONGEST, &mut code) == LONGEST && ends_with_a_call(code)
    }
}

impl Mapping {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        let (start, end) = words.next()?.split_once('-')?;
        let permissions = words.next()?;
        let offset = words.next()?;
        let name = words.nth(2).unwrap_or_default().trim_start();
        let hex = |word| usize::from_str_radix(word, 16).ok();
        Some(Self {
            range: hex(start)?..hex(end)?,
            executable: permissions.contains('x'),
            offset: hex(offset)?,
            name: name.to_owned(),
        })
    }
}

/// The encodings of CALL that compilers use: relative, and indirect by register or memory.
#[cfg(target_arch = "x86_64")]
fn ends_with_a_call(code: [u8; 7]) -> bool {
    // `ff /2`: the ModRM byte has 2 in bits 3 to 5; its mode gives the length of what follows.
    let is_call = |modrm: u8| modrm >> 3 & 7 == 2;
    let (mode, base) = (|modrm: u8| modrm >> 6, |modrm: u8| modrm & 7);
    code[2] == 0xe8
        || code[5] == 0xff
            && is_call(code[6])
            && matches!(mode(code[6]), 3 | 0)
            && base(code[6]) != 5
        || code[4] == 0xff && is_call(code[5]) && mode(code[5]) == 1 && base(code[5]) != 4
        || code[3] == 0xff && is_call(code[4]) && mode(code[4]) == 1 && base(code[4]) == 4
        || code[1] == 0xff
            && is_call(code[2])
            && (mode(code[2]) == 2 && base(code[2]) != 4
                || mode(code[2]) == 0 && base(code[2]) == 5)
        || code[0] == 0xff && is_call(code[1]) && mode(code[1]) == 2 && base(code[1]) == 4
}

/// BL and BLR, the four bytes before the address.
#[cfg(target_arch = "aarch64")]
fn ends_with_a_call(code: [u8; 7]) -> bool {
    let word = u32::from_le_bytes([code[3], code[4], code[5], code[6]]);
    word >> 26 == 0b10_0101 || word & 0xffff_fc1f == 0xd63f_0000
}

/// On other machines any address of code is shown.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn ends_with_a_call(_code: [u8; 7]) -> bool {
    true
}

/// Reads our own memory through the kernel: what is not mapped any more is an error, not a fault.
fn read_own(address: usize, into: &mut [u8]) -> usize {
    let length = into.len();
    let mut local = [IoSliceMut::new(into)];
    let remote = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: length,
    };
    // SAFETY: IoSliceMut has the layout of iovec and points to `length` writable bytes that nobody else uses;
    // the remote side is checked by the kernel.
    let read = unsafe {
        libc::process_vm_readv(
            process::id() as libc::pid_t,
            local.as_mut_ptr().cast(),
            1,
            &raw const remote,
            1,
            0,
        )
    };
    usize::try_from(read).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_are_understood() {
        assert_eq!(Entry::parse("running\n"), Entry::Running);
        assert_eq!(Entry::parse(""), Entry::Unknown);
        assert_eq!(Entry::parse("what is this"), Entry::Unknown);
        assert_eq!(
            Entry::parse("232 0x3 0x7f00 0x400 0xffffffff 0x0 0x8 0x7ffe10 0x7f1234\n"),
            Entry::Asleep {
                call: 232,
                stack: 0x7f_fe10,
                at: 0x7f_1234
            }
        );
        assert_eq!(
            Entry::parse("-1 0x7ffe10 0x7f1234\n"),
            Entry::Asleep {
                call: -1,
                stack: 0x7f_fe10,
                at: 0x7f_1234
            }
        );
    }

    #[test]
    fn places_are_file_and_offset() {
        let maps = Maps::parse(
            "55d0-55e0 r-xp 00001000 08:01 17    /opt/a program\nnonsense\n7000-7010 rw-p 0 0:0 0 \n",
        );
        assert_eq!(maps.place(0x55d4), "a program+0x1004");
        assert_eq!(maps.place(0x7004), "+0x4");
        assert_eq!(maps.place(0x1), "0x1");
    }

    #[test]
    fn memory_that_is_not_there_is_no_fault() {
        let mut byte = [0];
        assert_eq!(read_own(8, &mut byte), 0);
        let value = [42_u8];
        assert_eq!(read_own(value.as_ptr() as usize, &mut byte), 1);
        assert_eq!(byte, value);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn calls_are_recognized_and_jumps_are_not() {
        let ends = |tail: &[u8]| {
            let mut code = [0x90; 7];
            code[7 - tail.len()..].copy_from_slice(tail);
            ends_with_a_call(code)
        };
        assert!(ends(&[0xe8, 1, 2, 3, 4]), "call rel32");
        assert!(ends(&[0xff, 0xd0]), "call rax");
        assert!(ends(&[0xff, 0x10]), "call [rax]");
        assert!(ends(&[0xff, 0x15, 1, 2, 3, 4]), "call [rip+x]");
        assert!(ends(&[0xff, 0x50, 8]), "call [rax+8]");
        assert!(ends(&[0xff, 0x54, 0x24, 8]), "call [rsp+8]");
        assert!(ends(&[0xff, 0x90, 1, 2, 3, 4]), "call [rax+disp32]");
        assert!(!ends(&[0xff, 0xe0]), "jmp rax");
        assert!(!ends(&[0xe9, 1, 2, 3, 4]), "jmp rel32");
        assert!(!ends(&[0x90]), "nop");
    }
}
