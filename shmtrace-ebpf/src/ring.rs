//! The buffers of records: one for each CPU, in arrays that the daemon maps.
//!
//! `bpf_ringbuf` takes a lock, two helpers and a record header for what is here a few stores: a CPU is the only writer of its
//! buffer, and the reader looks by itself every few milliseconds. On the kernels that were measured this is half of a
//! record's cost (docs/benchmarks.md).

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::{
    Global, bindings::BPF_F_MMAPABLE, helpers::bpf_get_smp_processor_id, macros::map, maps::Array,
};
use shmtrace_common::{Cursor, Record};

/// Records that each CPU has room for, a power of two; set by the loader.
#[unsafe(no_mangle)]
pub static ROOM: Global<u32> = Global::new(0);

/// The records of all CPUs, one behind the other. The loader sets the size.
#[map]
static RECORDS: Array<Record> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// One for each CPU.
#[map]
static CURSORS: Array<Cursor> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Writes a record to this CPU's buffer; false if it is full, or a record of this CPU is being written.
#[inline(always)]
pub fn put(record: impl FnOnce(u32) -> Record) -> bool {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let Some(cursor) = CURSORS.get_ptr_mut(cpu) else {
        return false; // came online after the loader had counted them
    };
    let room = ROOM.load();
    // SAFETY: the cursor lives as long as the map. This CPU alone writes `head` and `writing`, and programs are not moved
    // to another while they run; `tail` is written by the daemon, one aligned word.
    unsafe {
        let head = (&raw const (*cursor).head).read_volatile();
        let tail = (&raw const (*cursor).tail).read_volatile();
        let writing = &raw mut (*cursor).writing;
        if head.wrapping_sub(tail) >= u64::from(room) || writing.read_volatile() != 0 {
            return false;
        }
        let place = cpu * room + (head as u32 & room.wrapping_sub(1));
        let Some(at) = RECORDS.get_ptr_mut(place) else {
            return false;
        };
        writing.write_volatile(1);
        at.write(record(cpu));
        publish(&raw mut (*cursor).head, head + 1);
        writing.write_volatile(0);
        true
    }
}

/// Makes the record visible before the head.
///
/// # Safety
/// `head` is this CPU's.
#[cfg(not(bpf_target_arch = "aarch64"))]
#[inline(always)]
unsafe fn publish(head: *mut u64, value: u64) {
    // x86 keeps the order of stores; so must the compiler.
    compiler_fence(Ordering::Release);
    // SAFETY: as for the caller.
    unsafe { head.write_volatile(value) };
}

/// The same where the CPU may reorder stores: a fetching atomic is a full barrier.
///
/// # Safety
/// `head` is this CPU's.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
unsafe fn publish(head: *mut u64, value: u64) {
    compiler_fence(Ordering::Release);
    // SAFETY: as for the caller.
    unsafe { core::sync::atomic::AtomicU64::from_ptr(head) }.swap(value, Ordering::SeqCst);
}
