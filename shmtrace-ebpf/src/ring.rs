//! The buffers of records: one for each CPU, in arrays that the daemon maps.
//!
//! `bpf_ringbuf` takes a lock, two helpers and a record header for what is here a few stores: a CPU is the only writer of its
//! buffer, and the reader looks by itself every few milliseconds. Only while nothing happens it looks seldom: then the first
//! record wakes it.
//!
//! One CPU can be in the middle of several records: `fexit` programs can be preempted on all kernels, and from 7.0 on those
//! at tracepoints. So a place is reserved first, and a record is complete when it bears its own number.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, BPF_RB_FORCE_WAKEUP},
    helpers::bpf_get_smp_processor_id,
    macros::map,
    maps::{Array, RingBuf},
};
use shmtrace_common::{Cursor, Record};

use crate::atomic;

/// Records that each CPU has room for, a power of two; set by the loader.
#[unsafe(no_mangle)]
pub static ROOM: Global<u32> = Global::new(0);

/// The records of all CPUs, one behind the other. The loader sets the size.
#[map]
static RECORDS: Array<Record> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// One for each CPU.
#[map]
static CURSORS: Array<Cursor> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Wakes the daemon while it rests; what lies in it says nothing.
#[map]
static WAKEUPS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Attempts at a reservation that others come in between.
const ATTEMPTS: usize = 4;

/// Writes a record to this CPU's buffer; false if it is full. Only where nothing can come in between, or the kernel has no
/// such instruction (before 5.12), `alone` is allowed.
#[inline(always)]
pub fn put(alone: bool, record: impl FnOnce(u32) -> Record) -> bool {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let written = write(cpu, alone, record);
    if !written {
        lost(cpu);
    }
    written
}

#[inline(always)]
fn write(cpu: u32, alone: bool, record: impl FnOnce(u32) -> Record) -> bool {
    let Some(cursor) = CURSORS.get_ptr_mut(cpu) else {
        return false; // came online after the loader had counted them
    };
    // SAFETY: the cursor lives as long as the map, and programs are not moved to another CPU while they run.
    let Some(number) = (unsafe { reserve(cursor, alone) }) else {
        return false;
    };
    let room = ROOM.load();
    let place = cpu * room + (number as u32 & room.wrapping_sub(1));
    let Some(at) = RECORDS.get_ptr_mut(place) else {
        return false;
    };
    // SAFETY: the place is reserved for this record, and the daemon reads it when it bears its number.
    unsafe {
        at.write(record(cpu));
        complete(at, Record::mark(number));
        wake(cursor);
    }
    true
}

/// Counts a record that found no room where the daemon sees it without a system call.
#[inline(always)]
fn lost(cpu: u32) {
    let own = CURSORS.get_ptr_mut(cpu);
    if let Some(cursor) = own.or_else(|| CURSORS.get_ptr_mut(0)) {
        // SAFETY: an aligned word of a map that lives as long as the program; only ever added to.
        unsafe { atomic::add(&raw mut (*cursor).lost, 1) };
    }
}

/// Wakes the daemon if it rests.
///
/// # Safety
/// As for [`reserve`], which was called before: it is a full barrier (but on old kernels on aarch64), so either the daemon
/// sees the record before it goes to rest, or the record sees it resting.
#[inline(always)]
unsafe fn wake(cursor: *mut Cursor) {
    // SAFETY: an aligned word that is only accessed whole.
    unsafe {
        let resting = &raw mut (*cursor).resting;
        if resting.read_volatile() != 0 {
            resting.write_volatile(0);
            // Full only if the daemon has been woken and does not run.
            let _full = WAKEUPS.output::<u64>(0_u64, u64::from(BPF_RB_FORCE_WAKEUP));
        }
    }
}

/// The number of the next record, if there is room for it.
///
/// # Safety
/// `cursor` is this CPU's.
#[inline(always)]
unsafe fn reserve(cursor: *mut Cursor, alone: bool) -> Option<u64> {
    // SAFETY: aligned words: `head` is this CPU's, `tail` is written by the daemon.
    unsafe {
        let tail = (&raw const (*cursor).tail).read_volatile();
        let head = &raw mut (*cursor).head;
        for _ in 0..ATTEMPTS {
            let number = head.read_volatile();
            if number.wrapping_sub(tail) >= u64::from(ROOM.load()) {
                return None;
            }
            if alone {
                atomic::add(head, 1);
                return Some(number);
            }
            if atomic::compare_exchange(head, number, number + 1) {
                return Some(number);
            }
        }
        None
    }
}

/// Marks a record as complete, after all of it was written.
///
/// # Safety
/// The record's place is reserved.
#[cfg(not(bpf_target_arch = "aarch64"))]
#[inline(always)]
unsafe fn complete(record: *mut Record, mark: u32) {
    // x86 keeps the order of stores; so must the compiler.
    compiler_fence(Ordering::Release);
    // SAFETY: as for the caller.
    unsafe { (&raw mut (*record).mark).write_volatile(mark) };
}

/// The same where the CPU may reorder stores: an exchange that succeeds is a full barrier. It takes the whole word, whose
/// lower half is the fd.
///
/// # Safety
/// The record's place is reserved.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
unsafe fn complete(record: *mut Record, mark: u32) {
    compiler_fence(Ordering::Release);
    // SAFETY: as for the caller; `fd` and `mark` share an aligned word.
    unsafe {
        let word = (&raw mut (*record).fd).cast::<u64>();
        let fd = word.read_volatile();
        atomic::compare_exchange(word, fd, fd | u64::from(mark) << 32);
    }
}
