//! What nobody who watches the same places can avoid: programs that do next to nothing, for `cargo xtask bench` to measure
//! beside the probes.
//!
//! At the sockets and at `sched_switch`, where the probes are: nothing at all; a look into an array whether the process is
//! traced; that with a record as long as a probe's, which nobody reads; and that with the indexes of a ring. At the exit of
//! system calls, by each of the three kinds of tracepoints: a hash lookup of the process.
#![no_std]
#![no_main]

#[path = "../bare.rs"]
mod bare;

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_user},
    macros::{btf_tracepoint, map, raw_tracepoint, tracepoint},
    maps::{Array, HashMap, PerCpuArray},
    programs::{BtfTracePointContext, RawTracePointContext, TracePointContext},
};
use shmtrace_common::{Kind, MAX_PROCESSES, NO_PEER, NO_SYSCALL, PID_SLOTS, Record};

/// Records that are written one over the other: as many as lie in a CPU's first cache.
const ROOM: u32 = 256;

/// Not 0 for traced processes, by pid modulo the size.
#[map]
static PIDS: Array<u32> = Array::with_max_entries(PID_SLOTS, 0);

/// Where a traced process has the header of the ring that it consumes, by pid modulo the size.
#[map]
static RINGS: Array<u64> = Array::with_max_entries(PID_SLOTS, 0);

/// Traced processes.
#[map]
static TREE: HashMap<u32, u32> = HashMap::with_max_entries(MAX_PROCESSES, 0);

#[map]
static RECORDS: PerCpuArray<Record> = PerCpuArray::with_max_entries(ROOM, 0);

/// The number of each CPU's next record.
#[map]
static NEXT: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// A doorbell is rung.
#[btf_tracepoint(function = "sock_send_length")]
pub fn nothing_sent(_ctx: BtfTracePointContext) -> i32 {
    0
}

/// A token is taken.
#[btf_tracepoint(function = "sock_recv_length")]
pub fn nothing_received(_ctx: BtfTracePointContext) -> i32 {
    0
}

/// A thread is switched out.
#[btf_tracepoint(function = "sched_switch")]
pub fn nothing_switched(_ctx: BtfTracePointContext) -> i32 {
    0
}

/// A doorbell is rung, perhaps by a traced process.
#[btf_tracepoint(function = "sock_send_length")]
pub fn lookup_sent(_ctx: BtfTracePointContext) -> i32 {
    i32::from(is_traced(thread()))
}

/// A token is taken, perhaps by a traced process.
#[btf_tracepoint(function = "sock_recv_length")]
pub fn lookup_received(_ctx: BtfTracePointContext) -> i32 {
    i32::from(is_traced(thread()))
}

/// A thread is switched out, perhaps a traced one.
#[btf_tracepoint(function = "sched_switch")]
pub fn lookup_switched(_ctx: BtfTracePointContext) -> i32 {
    i32::from(is_traced(thread()))
}

/// A doorbell is rung; leaves a record.
#[btf_tracepoint(function = "sock_send_length")]
pub fn record_sent(_ctx: BtfTracePointContext) -> i32 {
    record(Kind::Ring)
}

/// A token is taken, or there is none: that leaves no record.
#[btf_tracepoint(function = "sock_recv_length")]
pub fn record_received(ctx: BtfTracePointContext) -> i32 {
    let result: i64 = ctx.arg(1);
    if (result as i32) < 0 {
        return 0;
    }
    record(Kind::Take)
}

/// A thread is switched out; leaves a record.
#[btf_tracepoint(function = "sched_switch")]
pub fn record_switched(_ctx: BtfTracePointContext) -> i32 {
    record(Kind::Sleep)
}

/// A doorbell is rung; leaves a record with a ring's indexes.
#[btf_tracepoint(function = "sock_send_length")]
pub fn ring_sent(_ctx: BtfTracePointContext) -> i32 {
    record_with_ring(Kind::Ring)
}

/// A token is taken, or there is none: that leaves no record.
#[btf_tracepoint(function = "sock_recv_length")]
pub fn ring_received(ctx: BtfTracePointContext) -> i32 {
    let result: i64 = ctx.arg(1);
    if (result as i32) < 0 {
        return 0;
    }
    record_with_ring(Kind::Take)
}

/// A thread is switched out; leaves a record with a ring's indexes.
#[btf_tracepoint(function = "sched_switch")]
pub fn ring_switched(_ctx: BtfTracePointContext) -> i32 {
    record_with_ring(Kind::Sleep)
}

/// Any system call returned, at a tracepoint with types.
#[btf_tracepoint(function = "sys_exit")]
pub fn call_typed(_ctx: BtfTracePointContext) -> i32 {
    i32::from(is_in_tree())
}

/// The same at a raw tracepoint.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn call_raw(_ctx: RawTracePointContext) -> i32 {
    i32::from(is_in_tree())
}

/// A system call of one kind returned, at its classic tracepoint.
#[tracepoint]
pub fn call_classic(_ctx: TracePointContext) -> u32 {
    u32::from(is_in_tree())
}

/// pid and thread of the current task.
#[inline(always)]
fn thread() -> u64 {
    bpf_get_current_pid_tgid()
}

#[inline(always)]
fn pid(thread: u64) -> u32 {
    (thread >> 32) as u32
}

#[inline(always)]
fn is_traced(thread: u64) -> bool {
    let slot = PIDS.get(pid(thread) % PID_SLOTS);
    slot.is_some_and(|slot| *slot != 0)
}

#[inline(always)]
fn is_in_tree() -> bool {
    // SAFETY: only the presence counts.
    unsafe { TREE.get(pid(thread())) }.is_some()
}

#[inline(always)]
fn record_with_ring(kind: Kind) -> i32 {
    let thread = thread();
    if !is_traced(thread) {
        return 0;
    }
    let address = RINGS.get(pid(thread) % PID_SLOTS).copied().unwrap_or(0);
    // SAFETY: the helper checks the address; the words from head to tail are read at once, as the probes do.
    match unsafe { bpf_probe_read_user(address as *const [u64; 9]) } {
        Ok(header) => write(kind, thread, [header[0], header[8], 0, 0]),
        Err(_) => 0,
    }
}

#[inline(always)]
fn record(kind: Kind) -> i32 {
    let thread = thread();
    if !is_traced(thread) {
        return 0;
    }
    write(kind, thread, [0; 4])
}

#[inline(always)]
fn write(kind: Kind, thread: u64, rings: [u64; 4]) -> i32 {
    let Some(next) = NEXT.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: this CPU's own, for as long as the map lives.
    let number = unsafe {
        *next = (*next).wrapping_add(1);
        *next
    };
    let Some(at) = RECORDS.get_ptr_mut(number % ROOM) else {
        return 0;
    };
    // SAFETY: this CPU's own, and a helper without arguments.
    unsafe {
        at.write(Record {
            at: bpf_ktime_get_ns(),
            pid: pid(thread),
            tid: thread as u32,
            kind: kind as u8,
            flags: 0,
            cpu: 0,
            syscall: NO_SYSCALL,
            peer: NO_PEER,
            result: 0,
            hub: 0,
            arg: 0,
            fd: -1,
            mark: number,
            rings,
        });
    }
    0
}
