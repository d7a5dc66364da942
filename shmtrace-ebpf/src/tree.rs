//! The table of processes: who belongs to the tree.
//!
//! A child is entered by the fork itself, in the kernel, so no descendant of a known process is ever missed, however
//! fast they come. What existed before is entered by the daemon.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    programs::BtfTracePointContext,
};
use aya_log_ebpf::warn;
use shmtrace_common::{Counter, FLAG_PROCESS, HubMapping, Kind, MAX_HUBS_PER_PROCESS, NO_SYSCALL};

use crate::{
    emit::{self, Fact},
    kernel,
    maps::{PROCESSES, Tally, mark_traced},
};

/// A task of the tree started another: if that is a process, it inherits memory and doorbells.
#[inline(always)]
pub fn fork(ctx: &BtfTracePointContext, alone: bool) {
    let parent = current_pid();
    // SAFETY: the value is plain old data; a torn copy could only mix old and new mappings of a process that maps
    // and forks at once, and the daemon writes the child's entry anew.
    let Some(process) = (unsafe { PROCESSES.get(parent) }) else {
        return;
    };
    let Some(tally) = Tally::this_cpu(alone) else {
        return;
    };
    let child = kernel::task_tgid(ctx.arg(1));
    if child == parent || child == 0 {
        return;
    }
    let mut copy = *process;
    // SAFETY: a helper without arguments.
    copy.image = unsafe { bpf_ktime_get_ns() };
    mark_traced(child);
    if PROCESSES
        .insert(child, copy, u64::from(BPF_NOEXIST))
        .is_err()
    {
        // Either the daemon's scan was faster, or the table is full.
        // SAFETY: only the presence counts.
        if unsafe { PROCESSES.get(child) }.is_none() {
            tally.count(Counter::ProcessesFull);
            warn!(
                ctx,
                "table of processes is full: pid {} is not followed", child
            );
        }
    }
    emit::other(tally, &fact(Kind::Fork, u64::from(child), 0), None);
}

/// A process of the tree executed another program: its mappings are gone.
#[inline(always)]
pub fn exec(alone: bool) {
    let pid = current_pid();
    if let Some(process) = PROCESSES.get_ptr_mut(pid) {
        // SAFETY: the value lives as long as the program runs (RCU); exec leaves one thread, so no other probe of
        // this process runs.
        unsafe {
            (*process).hubs = [HubMapping {
                hub: 0,
                pad: 0,
                base: 0,
                len: 0,
            }; MAX_HUBS_PER_PROCESS];
            (*process).last_doorbell = 0;
            (*process).image = bpf_ktime_get_ns();
        }
        if let Some(tally) = Tally::this_cpu(alone) {
            emit::other(tally, &fact(Kind::Exec, 0, 0), None);
        }
    }
}

/// A thread of the tree ended.
#[inline(always)]
pub fn exit(ctx: &BtfTracePointContext, alone: bool) {
    let pid = current_pid();
    // SAFETY: only the presence counts.
    if unsafe { PROCESSES.get(pid) }.is_none() {
        return;
    }
    let last = kernel::is_last_thread(ctx.arg(0));
    if let Some(tally) = Tally::this_cpu(alone) {
        emit::other(
            tally,
            &fact(Kind::Exit, 0, if last { FLAG_PROCESS } else { 0 }),
            None,
        );
    }
    if last {
        let _gone_already = PROCESSES.remove(pid);
    }
}

fn current_pid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

fn fact(kind: Kind, arg: u64, flags: u8) -> Fact {
    Fact {
        thread: bpf_get_current_pid_tgid(),
        kind,
        flags,
        syscall: NO_SYSCALL,
        result: 0,
        hub: 0,
        arg,
        fd: -1,
    }
}
