//! A sleeping thread's user stack, read without stopping it.
//!
//! `/proc` tells the instruction and stack pointers of a thread in a system call, but not its frame pointer. So the
//! stack is searched, from its top, for the first frame record (saved frame pointer, return address) that begins a chain
//! of such records: each further up the stack, each with a return address into code right behind a call. A program without
//! frame pointers has no such chain, and none is made up.

use std::{collections::BTreeSet, io};

use shmtrace_engine::input::BlockedCall;

use super::{MapEntry, Process, maps::parse_files};

/// Bytes of the stack that are searched and followed.
const WINDOW: usize = 256 << 10;
/// Bytes from the top within which the first record must lie: the frames of libc have none.
const FIRST_WITHIN: usize = 8 << 10;
/// Records that make a chain; two can be chance.
const CHAIN: usize = 3;
/// Frames at most.
const MAX_FRAMES: usize = 128;

impl Process {
    /// The code addresses of a thread that blocks in `call`, innermost first; the call itself alone if the stack shows
    /// no chain of frame pointers.
    pub fn user_stack(&self, call: &BlockedCall) -> io::Result<Vec<u64>> {
        let code = self.code_ranges()?;
        let memory = self.memory().ok();
        let read = |address: u64, buffer: &mut [u8]| {
            let memory = memory.as_ref();
            memory.map_or(0, |memory| memory.read(address, buffer))
        };
        let mut stack = vec![0; WINDOW];
        let filled = read(call.sp, &mut stack);
        stack.truncate(filled);
        let is_return = |address: u64| {
            let inside = code
                .iter()
                .any(|(start, end)| (start.saturating_add(8)..*end).contains(&address));
            let mut before = [0; 8];
            inside && read(address - 8, &mut before) == before.len() && follows_a_call(before)
        };
        let mut frames = vec![call.pc];
        frames.extend(chain(&stack, call.sp, is_return));
        Ok(frames)
    }

    /// Whether a file in which one of these addresses lies could keep its reader waiting.
    pub(crate) fn code_may_block(&self, addresses: &[u64]) -> bool {
        let mut maps = Vec::new();
        if self.read_into("maps", &mut maps).is_err() {
            return true;
        }
        let lies_in = |entry: &MapEntry| {
            let range = entry.start..entry.end;
            addresses.iter().any(|address| range.contains(address))
        };
        let devices: BTreeSet<(u32, u32)> = parse_files(&maps)
            .filter(lies_in)
            .map(|entry| (entry.file.major, entry.file.minor))
            .collect();
        devices.into_iter().any(|device| self.may_block(device))
    }

    /// Where code is mapped.
    fn code_ranges(&self) -> io::Result<Vec<(u64, u64)>> {
        let mut maps = Vec::new();
        self.read_into("maps", &mut maps)?;
        Ok(code_ranges(&maps))
    }
}

/// Begin and end of each executable mapping among the lines of `/proc/PID/maps`.
pub(super) fn code_ranges(maps: &[u8]) -> Vec<(u64, u64)> {
    let range = |line: &[u8]| {
        let line = std::str::from_utf8(line).ok()?;
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let executable = rest.as_bytes().get(2) == Some(&b'x');
        let address = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = (address(start)?, address(end)?);
        (executable && start < end).then_some((start, end))
    };
    maps.split(|byte| *byte == b'\n')
        .filter_map(range)
        .collect()
}

/// Return addresses of the first chain of frame records in `stack`, whose first byte is at `base`.
pub(super) fn chain(stack: &[u8], base: u64, is_return: impl Fn(u64) -> bool) -> Vec<u64> {
    let word = |at: usize| {
        let bytes = stack.get(at..at.checked_add(8)?)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    };
    // The record at an offset: the next record's offset (`None` at the chain's end), and the return address.
    let record = |at: usize| {
        let (next, address) = (word(at)?, word(at + 8)?);
        let next = match next {
            0 => None,
            // Records are 16-byte aligned, and callers' are further up.
            next => {
                let next = usize::try_from(next.checked_sub(base)?).ok()?;
                let up = next > at && next < stack.len() && (next as u64 + base).is_multiple_of(16);
                Some(up.then_some(next)?)
            }
        };
        is_return(address).then_some((next, address))
    };
    let from = |first: usize| {
        let mut addresses = Vec::new();
        let mut at = Some(first);
        let mut whole = false;
        while let Some((next, address)) = at.and_then(record) {
            addresses.push(address);
            whole = next.is_none();
            at = next;
            if addresses.len() >= MAX_FRAMES {
                break;
            }
        }
        (addresses.len() >= CHAIN || whole && addresses.len() > 1).then_some(addresses)
    };
    // A program may point its stack pointer anywhere, even where the addresses end.
    let first = base
        .checked_next_multiple_of(16)
        .map_or(stack.len(), |aligned| (aligned - base) as usize);
    (first..stack.len().min(FIRST_WITHIN))
        .step_by(16)
        .find_map(from)
        .unwrap_or_default()
}

/// Whether these eight bytes of code end with a call.
#[cfg(target_arch = "x86_64")]
fn follows_a_call(code: [u8; 8]) -> bool {
    // `e8 rel32`, or `ff /2` with 0 to 5 bytes of address after its modrm byte.
    let direct = code[3] == 0xe8;
    let indirect = (1..=6).any(|at| code[at] == 0xff && code[at + 1] >> 3 & 7 == 2);
    direct || indirect
}

/// Whether these eight bytes of code end with a call.
#[cfg(target_arch = "aarch64")]
fn follows_a_call(code: [u8; 8]) -> bool {
    let instruction = u32::from_le_bytes([code[4], code[5], code[6], code[7]]);
    // `bl`, or `blr`.
    instruction & 0xfc00_0000 == 0x9400_0000 || instruction & 0xffff_fc1f == 0xd63f_0000
}

/// Other machines' calls are not known, so no return address is believed.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn follows_a_call(_code: [u8; 8]) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use shmtrace_engine::input::ThreadObservation;

    use super::*;

    const BASE: u64 = 0x7000_0000;

    /// A stack of 64 words with records at word offsets, each pointing to the next, the last to nothing.
    fn stack(records: &[(usize, u64)]) -> Vec<u8> {
        let mut words = [0x1234_u64; 64];
        for (number, (at, address)) in records.iter().enumerate() {
            let next = records.get(number + 1);
            words[*at] = next.map_or(0, |(next, _)| BASE + *next as u64 * 8);
            words[at + 1] = *address;
        }
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn is_code(address: u64) -> bool {
        (0x1000..0x2000).contains(&address)
    }

    #[test]
    fn a_chain_is_followed_to_its_end() {
        let bytes = stack(&[(6, 0x1001), (10, 0x1002), (20, 0x1003), (40, 0x1004)]);
        assert_eq!(
            chain(&bytes, BASE, is_code),
            [0x1001, 0x1002, 0x1003, 0x1004]
        );
    }

    #[test]
    fn chance_is_no_chain() {
        // One record that looks right, and two that do not end.
        assert_eq!(chain(&stack(&[(6, 0x1001)]), BASE, is_code), [0_u64; 0]);
        let mut bytes = stack(&[(6, 0x1001), (10, 0x1002)]);
        bytes[80..88].copy_from_slice(&0x77_u64.to_ne_bytes());
        assert_eq!(chain(&bytes, BASE, is_code), [0_u64; 0]);
        // Addresses that are no code.
        assert_eq!(
            chain(&stack(&[(6, 5), (10, 6), (20, 7)]), BASE, is_code),
            [0_u64; 0]
        );
    }

    #[test]
    fn a_chain_that_goes_down_or_round_ends() {
        let mut bytes = stack(&[(6, 0x1001), (10, 0x1002), (20, 0x1003), (40, 0x1004)]);
        bytes[320..328].copy_from_slice(&(BASE + 48).to_ne_bytes());
        assert_eq!(chain(&bytes, BASE, is_code), [0x1001, 0x1002, 0x1003]);
        assert_eq!(chain(&[], BASE, is_code), [0_u64; 0]);
        assert_eq!(chain(&[0xff; 4096], u64::MAX - 4096, |_| true), [0_u64; 0]);
        assert_eq!(chain(&[0; 16], u64::MAX - 3, |_| true), [0_u64; 0]);
    }

    #[test]
    fn a_stack_without_end_is_cut() {
        // Each record four words above the one before.
        let records: Vec<(usize, u64)> = (0..2 * MAX_FRAMES).map(|at| (4 * at, 0x1001)).collect();
        let mut words = vec![0_u64; 8 * MAX_FRAMES];
        for (at, address) in &records {
            words[*at] = BASE + (*at as u64 + 4) * 8;
            words[at + 1] = *address;
        }
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(chain(&bytes, BASE, is_code).len(), MAX_FRAMES);
    }

    #[test]
    fn files_and_their_devices_are_read() {
        let maps = b"1000-2000 r-xp 00000000 fe:01 12 /usr/bin/x\n\
            2000-3000 rw-p 00000000 00:00 0 \n\
            rubbish\n\
            ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]\n";
        let files: Vec<_> = parse_files(maps)
            .map(|entry| (entry.start..entry.end, (entry.file.major, entry.file.minor)))
            .collect();
        assert_eq!(files, [(0x1000..0x2000, (0xfe, 1))]);
    }

    #[test]
    fn only_code_is_code() {
        let maps = b"1000-2000 r-xp 00000000 fe:01 12 /usr/bin/x\n\
            2000-3000 r--p 00000000 fe:01 12 /usr/bin/x\n\
            5000-4000 r-xp 00000000 fe:01 12 /backwards\n\
            rubbish\n";
        assert_eq!(code_ranges(maps), [(0x1000, 0x2000)]);
    }

    #[test]
    fn a_real_sleeping_thread_shows_at_least_its_call() {
        let sleeper = std::thread::Builder::new()
            .name("stack-sleeper".into())
            .spawn(|| std::thread::sleep(std::time::Duration::from_millis(500)))
            .unwrap();
        let process = Process::open(std::process::id()).unwrap();
        let call = loop {
            let seen = process.observe_threads(&crate::process::Doorbells::default());
            let named = |thread: &&ThreadObservation| thread.name == "stack-sleeper";
            let call = seen
                .threads
                .iter()
                .find(named)
                .and_then(|thread| thread.syscall);
            let sleeps = |call: &BlockedCall| i64::from(call.number) == libc::SYS_clock_nanosleep;
            if let Some(call) = call.filter(sleeps) {
                break call;
            }
        };
        let frames = process.user_stack(&call).unwrap();
        assert_eq!(frames[0], call.pc);
        let code = process.code_ranges().unwrap();
        assert!(frames.iter().all(|frame| {
            code.iter()
                .any(|(start, end)| (start..end).contains(&frame))
        }));
        sleeper.join().unwrap();
    }
}
