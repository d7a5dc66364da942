//! The probes: what the traced processes do with doorbells and hub futexes, and when their threads fall asleep.
//!
//! Signals are seen where they are made: at the sockets, by `sock_send_length` and `sock_recv_length`, whichever call made
//! them, so that no other call costs anything. Any tracepoint of system calls would slow down every call of everybody,
//! so what never reaches a socket is seen elsewhere: new mappings where the kernel looks for room for them, and sends on a
//! closed fd at the exits of those calls' functions, where the kernel lets us (else by a tracepoint, as long as there are
//! not so many calls that it matters). Kernels without the sockets' tracepoints have `sys_exit` for all of these. `sched_switch` shows that a thread really went to sleep; fork, exec
//! and exit keep the table of processes. Everything is decided in the kernel that can be: calls of other processes,
//! private futexes, drains that found nothing and sockets that are no doorbells leave no record, only a count.
#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod atomic;
mod bare;
mod calls;
mod emit;
mod fds;
mod kernel;
mod maps;
mod ring;
mod tree;
mod turn;

use aya_ebpf::{
    macros::{btf_tracepoint, fexit, tracepoint},
    programs::{BtfTracePointContext, FExitContext, TracePointContext},
};

use turn::Turn;

/// Entry of `sys_exit(struct pt_regs *regs, long ret)`.
#[btf_tracepoint(function = "sys_exit")]
pub fn shmtrace_sys_exit(ctx: BtfTracePointContext) -> i32 {
    calls::sys_exit(&ctx, false);
    0
}

/// The same before 5.12; nothing can come in between there.
#[btf_tracepoint(function = "sys_exit")]
pub fn shmtrace_sys_exit_old(ctx: BtfTracePointContext) -> i32 {
    calls::sys_exit(&ctx, true);
    0
}

/// Entry of `sock_send_length(struct sock *sk, int ret, int flags)`, from 6.3.
#[btf_tracepoint(function = "sock_send_length")]
pub fn shmtrace_sent(ctx: BtfTracePointContext) -> i32 {
    calls::socket_sent(&ctx, Turn::First);
    0
}

/// The same for calls that it was left out of.
#[btf_tracepoint(function = "sock_send_length")]
pub fn shmtrace_sent_spare(ctx: BtfTracePointContext) -> i32 {
    calls::socket_sent(&ctx, Turn::Spare);
    0
}

/// Entry of `sock_recv_length(struct sock *sk, int ret, int flags)`, from 6.3.
#[btf_tracepoint(function = "sock_recv_length")]
pub fn shmtrace_received(ctx: BtfTracePointContext) -> i32 {
    calls::socket_received(&ctx, Turn::First);
    0
}

/// The same for calls that it was left out of.
#[btf_tracepoint(function = "sock_recv_length")]
pub fn shmtrace_received_spare(ctx: BtfTracePointContext) -> i32 {
    calls::socket_received(&ctx, Turn::Spare);
    0
}

/// Exit of `__x64_sys_sendto(const struct pt_regs *)`: no socket sees a send on an fd that names none.
#[fexit(function = "__x64_sys_sendto")]
pub fn shmtrace_sendto(ctx: FExitContext) -> i32 {
    calls::sent_nowhere(&ctx);
    0
}

/// The same of `sendmsg`.
#[fexit(function = "__x64_sys_sendmsg")]
pub fn shmtrace_sendmsg(ctx: FExitContext) -> i32 {
    calls::sent_nowhere(&ctx);
    0
}

/// Exit of both calls where `fexit` programs are not let in, by classic tracepoints.
#[tracepoint]
pub fn shmtrace_call(ctx: TracePointContext) -> u32 {
    calls::sent_nowhere_classic(&ctx);
    0
}

/// Entry of `vm_unmapped_area(unsigned long addr, struct vm_unmapped_area_info *info)`, from 5.7.
#[btf_tracepoint(function = "vm_unmapped_area")]
pub fn shmtrace_mapping(ctx: BtfTracePointContext) -> i32 {
    calls::mapping(&ctx);
    0
}

/// Entry of `sched_switch(bool preempt, prev, next, unsigned int prev_state)`, from 5.18.
#[btf_tracepoint(function = "sched_switch")]
pub fn shmtrace_sched_switch(ctx: BtfTracePointContext) -> i32 {
    let state: u32 = ctx.arg(3);
    calls::sched_switch(&ctx, state, true);
    0
}

/// The same before 5.18: the state stands in the task only, and its registers are out of reach (before 5.15).
#[btf_tracepoint(function = "sched_switch")]
pub fn shmtrace_sched_switch_old(ctx: BtfTracePointContext) -> i32 {
    let state = kernel::task_state(ctx.arg(1));
    calls::sched_switch(&ctx, state, false);
    0
}

/// Entry of `sched_process_fork(parent, child)`.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn shmtrace_fork(ctx: BtfTracePointContext) -> i32 {
    if Turn::First.is_mine(kernel::who().tid) {
        tree::fork(&ctx, false);
    }
    0
}

/// The same for those that it was left out of.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn shmtrace_fork_spare(ctx: BtfTracePointContext) -> i32 {
    if Turn::Spare.is_mine(kernel::who().tid) {
        tree::fork(&ctx, false);
    }
    0
}

/// The same before 5.12.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn shmtrace_fork_old(ctx: BtfTracePointContext) -> i32 {
    tree::fork(&ctx, true);
    0
}

/// Entry of `sched_process_exec(task, old_pid, bprm)`.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn shmtrace_exec(_ctx: BtfTracePointContext) -> i32 {
    if Turn::First.is_mine(kernel::who().tid) {
        tree::exec(false);
    }
    0
}

/// The same for those that it was left out of.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn shmtrace_exec_spare(_ctx: BtfTracePointContext) -> i32 {
    if Turn::Spare.is_mine(kernel::who().tid) {
        tree::exec(false);
    }
    0
}

/// The same before 5.12.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn shmtrace_exec_old(_ctx: BtfTracePointContext) -> i32 {
    tree::exec(true);
    0
}

/// Entry of `sched_process_exit(task)`.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn shmtrace_exit(ctx: BtfTracePointContext) -> i32 {
    if Turn::First.is_mine(kernel::who().tid) {
        tree::exit(&ctx, false);
    }
    0
}

/// The same for those that it was left out of.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn shmtrace_exit_spare(ctx: BtfTracePointContext) -> i32 {
    if Turn::Spare.is_mine(kernel::who().tid) {
        tree::exit(&ctx, false);
    }
    0
}

/// The same before 5.12.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn shmtrace_exit_old(ctx: BtfTracePointContext) -> i32 {
    tree::exit(&ctx, true);
    0
}
