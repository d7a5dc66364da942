//! Maps, globals and counters.

use aya_ebpf::{
    Global,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use shmtrace_common::{
    Counter, Counters, Doorbell, FdKey, KernelOffsets, KnownFd, MAX_DOORBELLS, MAX_KNOWN_FDS,
    MAX_PROCESSES, Process,
};

/// Set to 1 by a loader that speaks version 2 of the ABI; probes that lack the name are refused by it, and probes
/// whose loader does not know the name write nothing.
#[unsafe(no_mangle)]
pub static ABI_2: Global<u32> = Global::new(0);

/// Field offsets on the running kernel, set by the loader.
#[unsafe(no_mangle)]
pub static OFFSETS: Global<KernelOffsets> = Global::new(KernelOffsets {
    task_files: 0,
    task_tgid: 0,
    task_signal: 0,
    task_state: 0,
    signal_live: 0,
    files_fdt: 0,
    fdt_max_fds: 0,
    fdt_fd: 0,
    file_inode: 0,
    inode_ino: 0,
    sock_socket: 0,
    socket_file: 0,
});

/// Bytes in a ring buffer from which on the reader is woken at once; set by the loader to a quarter of the size.
#[unsafe(no_mangle)]
pub static WAKE_AT: Global<u64> = Global::new(0);

/// Processes of the tree, by pid.
#[map]
pub static PROCESSES: HashMap<u32, Process> = HashMap::with_max_entries(MAX_PROCESSES, 0);

/// Slot in [`DOORBELLS`] of a socket inode.
#[map]
pub static SOCKETS: HashMap<u64, u32> = HashMap::with_max_entries(MAX_DOORBELLS, 0);

/// What the daemon knows of each socket.
#[map]
pub static DOORBELLS: Array<Doorbell> = Array::with_max_entries(MAX_DOORBELLS, 0);

/// What fds of traced processes were when they were last used.
#[map]
pub static FDS: LruHashMap<FdKey, KnownFd> = LruHashMap::with_max_entries(MAX_KNOWN_FDS, 0);

/// One value: grows each time the daemon describes a socket.
#[map]
pub static EPOCH: Array<u32> = Array::with_max_entries(1, 0);

#[map]
static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);

// One ring per CPU (modulo eight): two CPUs that write to one cost three times as much as each to its own. The loader
// sets the sizes; those that no CPU uses shrink to a page.
macro_rules! rings {
    ($($name:ident)*) => { $(
        #[map]
        static $name: RingBuf = RingBuf::with_byte_size(1 << 20, 0);
    )* };
}
rings!(RING0 RING1 RING2 RING3 RING4 RING5 RING6 RING7);

/// The ring buffer of a CPU.
#[inline(always)]
pub fn ring(cpu: u32) -> &'static RingBuf {
    match cpu & 7 {
        0 => &RING0,
        1 => &RING1,
        2 => &RING2,
        3 => &RING3,
        4 => &RING4,
        5 => &RING5,
        6 => &RING6,
        _ => &RING7,
    }
}

/// The counters of this CPU.
#[derive(Clone, Copy)]
pub struct Tally(*mut Counters);

impl Tally {
    /// Looks them up, once for a program run.
    #[inline(always)]
    pub fn this_cpu() -> Option<Self> {
        COUNTERS.get_ptr_mut(0).map(Self)
    }

    /// Adds one.
    #[inline(always)]
    pub fn count(self, counter: Counter) {
        // SAFETY: the map's value lives as long as the program; a per-CPU value has no other writer but a program
        // that interrupts this one on the same CPU, whose lost increment would show as a mismatch in the sums.
        unsafe { (*self.0).0[counter as usize] += 1 };
    }
}
