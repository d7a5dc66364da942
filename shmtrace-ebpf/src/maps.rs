//! Maps, globals and counters.

use aya_ebpf::{
    Global,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
};
use shmtrace_common::{
    Counter, Counters, Doorbell, FdKey, KernelOffsets, KnownFd, MAX_DOORBELLS, MAX_KNOWN_FDS,
    MAX_PROCESSES, PID_SLOTS, Process,
};

use crate::atomic;

/// Set to 1 by a loader that speaks version 6 of the ABI; probes that lack the name are refused by it, and probes
/// whose loader does not know the name write nothing.
#[unsafe(no_mangle)]
pub static ABI_6: Global<u32> = Global::new(0);

/// Not 0 where programs at tracepoints can be preempted; set by the loader.
#[unsafe(no_mangle)]
pub static PREEMPTIBLE: Global<u32> = Global::new(0);

/// Field offsets on the running kernel, set by the loader.
#[unsafe(no_mangle)]
pub static OFFSETS: Global<KernelOffsets> = Global::new(KernelOffsets {
    task_files: 0,
    task_pid: 0,
    task_tgid: 0,
    task_signal: 0,
    task_exec_id: 0,
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

/// Processes of the tree, by pid.
#[map]
pub static PROCESSES: HashMap<u32, Process> = HashMap::with_max_entries(MAX_PROCESSES, 0);

/// See [`is_bystander`].
#[map]
static PIDS: Array<u32> = Array::with_max_entries(PID_SLOTS, 0);

/// Whether a pid is certainly of no process in the tree: a look into an array, where a hash lookup takes ten times as
/// long. Entries are never taken back, since two pids may share one; that costs time only.
#[inline(always)]
pub fn is_bystander(pid: u32) -> bool {
    PIDS.get(pid % PID_SLOTS).copied() == Some(0)
}

/// From now on this pid is no bystander's. Before it is entered into [`PROCESSES`].
#[inline(always)]
pub fn mark_traced(pid: u32) {
    if let Some(entry) = PIDS.get_ptr_mut(pid % PID_SLOTS) {
        // SAFETY: an aligned word, which everybody only ever sets to 1.
        unsafe { entry.write_volatile(1) };
    }
}

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

/// The doorbell that each CPU saw used last.
#[map]
static LAST: PerCpuArray<Last> = PerCpuArray::with_max_entries(1, 0);

/// A doorbell, and who used it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Last {
    pid: u32,
    slot: u32,
}

#[map]
static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);

/// The counters of this CPU, and the doorbell that it saw used last.
#[derive(Clone, Copy)]
pub struct Tally {
    counters: *mut Counters,
    last: *mut Last,
    /// See [`ring::put`](crate::ring::put).
    pub alone: bool,
}

impl Tally {
    /// Looks them up, once for a program run.
    #[inline(always)]
    pub fn this_cpu(alone: bool) -> Option<Self> {
        Some(Self {
            counters: COUNTERS.get_ptr_mut(0)?,
            last: LAST.get_ptr_mut(0)?,
            alone,
        })
    }

    /// Adds one.
    #[inline(always)]
    pub fn count(self, counter: Counter) {
        // SAFETY: the map's value lives as long as the program; a per-CPU value has no other writer but a program that
        // comes in between on the same CPU, which is allowed for where that can be.
        unsafe {
            let count = &raw mut (*self.counters).0[counter as usize];
            if PREEMPTIBLE.load() == 0 {
                *count += 1;
            } else {
                atomic::add(count, 1);
            }
        }
    }

    /// This process used this doorbell.
    #[inline(always)]
    pub fn used(self, pid: u32, slot: u32) {
        // SAFETY: as above; what it says is checked again by whoever reads it.
        unsafe { *self.last = Last { pid, slot } };
    }

    /// The doorbell that this process used last on this CPU, if nobody used another one since.
    #[inline(always)]
    pub fn last(self, pid: u32) -> Option<u32> {
        // SAFETY: as above.
        let last = unsafe { *self.last };
        (last.pid == pid).then_some(last.slot)
    }
}
