//! Sampling a tree: where its threads are when a CPU's clock ticks, and where they go to sleep.
//!
//! An object of its own, so that watching does not pay for the tables of stacks. Fork and exit keep the table of
//! processes, as for the probes.
#![no_std]
#![no_main]

#[path = "../bare.rs"]
mod bare;

use aya_ebpf::{
    EbpfContext, Global,
    bindings::{BPF_F_USER_STACK, BPF_NOEXIST},
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_kernel,
    },
    macros::{btf_tracepoint, map, perf_event},
    maps::{HashMap, PerCpuArray, StackTrace},
    programs::{BtfTracePointContext, PerfEventContext, tracing::StackIdContext},
};
use shmtrace_common::profile::{
    MAX_PLACES, MAX_SAMPLED_PROCESSES, MAX_STACKS, MAX_WAITING, NO_STACK, Place, ProfileOffsets,
    Trouble, Waiting,
};

/// Task states in which a thread waits for something (`TASK_INTERRUPTIBLE`, `TASK_UNINTERRUPTIBLE`).
const ASLEEP: u32 = 1 | 2;

/// Set to 1 by a loader that speaks version 1 of the ABI.
#[unsafe(no_mangle)]
static PROFILE_ABI_1: Global<u32> = Global::new(0);

/// Field offsets on the running kernel, set by the loader.
#[unsafe(no_mangle)]
static PROFILE_OFFSETS: Global<ProfileOffsets> = Global::new(ProfileOffsets {
    task_pid: 0,
    task_tgid: 0,
    task_state: 0,
    task_signal: 0,
    signal_live: 0,
});

/// Processes of the tree.
#[map]
static TREE: HashMap<u32, u32> = HashMap::with_max_entries(MAX_SAMPLED_PROCESSES, 0);

#[map]
static STACKS: StackTrace = StackTrace::with_max_entries(MAX_STACKS, 0);

/// Samples, or nanoseconds, by place.
#[map]
static PLACES: HashMap<Place, u64> = HashMap::with_max_entries(MAX_PLACES, 0);

/// Threads that are off the CPU, by tid.
#[map]
static WAITING: HashMap<u32, Waiting> = HashMap::with_max_entries(MAX_WAITING, 0);

#[map]
static TROUBLES: PerCpuArray<u64> = PerCpuArray::with_max_entries(Trouble::COUNT, 0);

/// A tick of a CPU's clock.
#[perf_event]
pub fn profile_tick(ctx: PerfEventContext) -> u32 {
    if let Some(place) = place(&ctx) {
        add(&place, 1);
    }
    0
}

/// Entry of `sched_switch(bool preempt, prev, next)`: one thread goes, another comes.
#[btf_tracepoint(function = "sched_switch")]
pub fn profile_switch(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let next: *const u8 = ctx.arg(2);
    let comes = field(next, PROFILE_OFFSETS.load().task_pid);
    // SAFETY: copied at once; only this thread's own switches write the entry.
    if let Some(waiting) = unsafe { WAITING.get(&comes) }.copied() {
        let _gone = WAITING.remove(&comes);
        add(&waiting.place, now.saturating_sub(waiting.since));
    }
    let preempted: u64 = ctx.arg(0);
    let goes: *const u8 = ctx.arg(1);
    if preempted & 0xff == 0
        && field(goes, PROFILE_OFFSETS.load().task_state) & ASLEEP != 0
        && let Some(place) = place(&ctx)
    {
        let tid = bpf_get_current_pid_tgid() as u32;
        if WAITING
            .insert(&tid, &Waiting { since: now, place }, 0)
            .is_err()
        {
            count(Trouble::WaitingFull);
        }
    }
    0
}

/// Entry of `sched_process_fork(parent, child)`.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn profile_fork(ctx: BtfTracePointContext) -> i32 {
    let parent = current_pid();
    // SAFETY: only the presence counts.
    if unsafe { TREE.get(&parent) }.is_none() {
        return 0;
    }
    let child = field(ctx.arg(1), PROFILE_OFFSETS.load().task_tgid);
    if child != parent && child != 0 && TREE.insert(&child, &1, u64::from(BPF_NOEXIST)).is_err() {
        // SAFETY: only the presence counts.
        if unsafe { TREE.get(&child) }.is_none() {
            count(Trouble::ProcessesFull);
        }
    }
    0
}

/// Entry of `sched_process_exit(task)`.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn profile_exit(ctx: BtfTracePointContext) -> i32 {
    let offsets = PROFILE_OFFSETS.load();
    let task: *const u8 = ctx.arg(0);
    // SAFETY: probe reads check each address; a wrong offset yields a wrong value or an error, never a fault.
    let last = unsafe {
        let signal =
            bpf_probe_read_kernel(task.add(offsets.task_signal as usize).cast::<*const u8>());
        signal.is_ok_and(|signal| field(signal, offsets.signal_live) == 0)
    };
    if last {
        let _not_ours = TREE.remove(&current_pid());
    }
    0
}

/// Where the current thread is, if it belongs to the tree.
#[inline(always)]
fn place<C: StackIdContext + EbpfContext>(ctx: &C) -> Option<Place> {
    let pid = current_pid();
    // SAFETY: only the presence counts.
    if PROFILE_ABI_1.load() == 0 || unsafe { TREE.get(&pid) }.is_none() {
        return None;
    }
    let user = stack(ctx, u64::from(BPF_F_USER_STACK));
    let kernel = stack(ctx, 0);
    let comm = bpf_get_current_comm().unwrap_or_default();
    Some(Place {
        pid,
        user,
        kernel,
        pad: 0,
        comm,
    })
}

#[inline(always)]
fn stack<C: StackIdContext>(ctx: &C, flags: u64) -> i32 {
    const EFAULT: i32 = -14;
    match ctx.get_stackid(&STACKS, flags) {
        Ok(id) => id as i32,
        // There is none: a kernel thread, or the tick came in user mode.
        Err(EFAULT) => NO_STACK,
        Err(_) => {
            count(Trouble::StackLost);
            NO_STACK
        }
    }
}

#[inline(always)]
fn add(place: &Place, amount: u64) {
    if let Some(sum) = PLACES.get_ptr_mut(place) {
        // SAFETY: the value lives as long as the program runs. Two CPUs in the same place may lose one of two
        // additions, which is one sample of many.
        unsafe { *sum += amount };
    } else if PLACES.insert(place, &amount, 0).is_err() {
        count(Trouble::PlacesFull);
    }
}

#[inline(always)]
fn count(trouble: Trouble) {
    if let Some(sum) = TROUBLES.get_ptr_mut(trouble as u32) {
        // SAFETY: a value of this CPU, which lives as long as the program.
        unsafe { *sum += 1 };
    }
}

#[inline(always)]
fn current_pid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// A half word of a kernel structure, 0 if unreadable.
#[inline(always)]
fn field(base: *const u8, offset: u32) -> u32 {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel((base as u64 + u64::from(offset)) as *const u32).unwrap_or(0) }
}
