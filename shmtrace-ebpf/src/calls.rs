//! Calls on doorbells and hub futexes, and threads that fall asleep.

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    programs::{BtfTracePointContext, FExitContext, TracePointContext},
};
#[cfg(bpf_target_arch = "aarch64")]
use shmtrace_common::syscalls::aarch64 as nr;
#[cfg(not(bpf_target_arch = "aarch64"))]
use shmtrace_common::syscalls::x86_64 as nr;
use shmtrace_common::{Counter, Doorbell, Kind, NO_SYSCALL, PROC_PARTICIPANT, Process};

use crate::{
    emit::{self, At, Fact},
    fds::{self, Fd},
    kernel::{self, Args, Who},
    maps::{PROCESSES, Tally, is_bystander},
    turn::Turn,
};

const EBADF: i32 = 9;
const EAGAIN: i32 = 11;
const ENOTSOCK: i32 = 88;
const MSG_PEEK: u64 = 2;
const MAP_SHARED: u64 = 1;
const MAP_TYPE: u64 = 3;

const FUTEX_PRIVATE_FLAG: u64 = 128;
const FUTEX_COMMAND: u64 = 0x7f;
const FUTEX_WAIT: u64 = 0;
const FUTEX_WAKE: u64 = 1;
const FUTEX_WAIT_BITSET: u64 = 9;
const FUTEX_WAKE_BITSET: u64 = 10;

/// Task states in which a thread waits for something (`TASK_INTERRUPTIBLE`, `TASK_UNINTERRUPTIBLE`).
const ASLEEP: u32 = 1 | 2;

/// What a call is to the probes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Interest {
    Send,
    Receive,
    Wait,
    Futex,
    Map,
    Close,
}

/// Decided by the number alone and before anything else, so that bystanders pay for a few comparisons only.
#[inline(always)]
fn interest(number: u16) -> Option<Interest> {
    match number {
        nr::SENDTO | nr::SENDMSG | nr::SENDMMSG | nr::WRITE => Some(Interest::Send),
        nr::RECVFROM | nr::RECVMSG | nr::RECVMMSG | nr::READ => Some(Interest::Receive),
        number if nr::waits_for_fds(number) => Some(Interest::Wait),
        nr::FUTEX => Some(Interest::Futex),
        nr::MMAP => Some(Interest::Map),
        nr::CLOSE | nr::DUP2 | nr::DUP3 | nr::CLOSE_RANGE => Some(Interest::Close),
        _ => None,
    }
}

/// A system call returned.
#[inline(always)]
pub fn sys_exit(ctx: &BtfTracePointContext, alone: bool) {
    let regs: *const u8 = ctx.arg(0);
    let syscall = kernel::number(regs);
    let Some(interest) = interest(syscall) else {
        return;
    };
    let args = kernel::args(regs);
    let result: i64 = ctx.arg(1);
    match interest {
        // Private futexes are most of a runtime's calls and never in a hub.
        Interest::Futex if args.second & FUTEX_PRIVATE_FLAG != 0 => return,
        // Only shared mappings can be hubs.
        Interest::Map if args.fourth & MAP_TYPE != MAP_SHARED || (-4095..0).contains(&result) => {
            return;
        }
        _ => {}
    }
    let thread = bpf_get_current_pid_tgid();
    let pid = (thread >> 32) as u32;
    let Some(process) = PROCESSES.get_ptr_mut(pid) else {
        return;
    };
    // SAFETY: the value lives as long as the program runs (RCU). The daemon replaces whole values and the probes
    // write one aligned word; a read that mixes two versions gives ring indexes that "could not be read" at worst.
    let process = unsafe { &mut *process };
    let Some(tally) = Tally::this_cpu(alone) else {
        return;
    };
    let base = Fact {
        thread,
        kind: Kind::Ring,
        flags: 0,
        syscall,
        result: result as i32,
        hub: 0,
        arg: args.first,
        fd: -1,
    };
    match interest {
        Interest::Map => {
            return emit::other(
                tally,
                &Fact {
                    kind: Kind::Map,
                    arg: result as u64,
                    ..base
                },
                None,
            );
        }
        Interest::Close => return close(pid, &base, &args, process),
        _ => {}
    }
    tally.count(Counter::Calls);
    match interest {
        Interest::Send => send(tally, pid, base, process),
        Interest::Receive => receive(tally, pid, base, &args, process),
        Interest::Wait => wait(tally, base, &args, process),
        Interest::Futex => futex(tally, base, &args, process),
        Interest::Map | Interest::Close => {}
    }
}

/// A send returned that may never have come to a socket.
#[inline(always)]
pub fn sent_nowhere(ctx: &FExitContext) {
    let regs: *const u8 = ctx.arg(0);
    let result: i64 = ctx.arg(1);
    if is_no_socket(result) {
        failed(regs, result);
    }
}

/// The same at a classic tracepoint.
#[inline(always)]
pub fn sent_nowhere_classic(ctx: &TracePointContext) {
    // Offset of `ret` in `events/syscalls/sys_exit_*/format`, the same for each call on every kernel.
    // SAFETY: it lies within the tracepoint's context.
    if let Ok(result) = unsafe { ctx.read_at::<i64>(16) }
        && is_no_socket(result)
    {
        failed(kernel::current_registers(), result);
    }
}

#[inline(always)]
fn is_no_socket(result: i64) -> bool {
    result == i64::from(-EBADF) || result == i64::from(-ENOTSOCK)
}

/// A send failed on an fd that is no socket.
#[inline(always)]
fn failed(regs: *const u8, result: i64) {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: as in `sys_exit`.
    let Some(process) = (unsafe { PROCESSES.get((thread >> 32) as u32) }) else {
        return;
    };
    let Some(tally) = Tally::this_cpu(false) else {
        return;
    };
    tally.count(Counter::Calls);
    if process.flags & PROC_PARTICIPANT == 0 {
        return tally.count(Counter::FilteredForeign);
    }
    let fact = Fact {
        thread,
        kind: Kind::Ring,
        flags: 0,
        syscall: kernel::number(regs),
        result: result as i32,
        hub: 0,
        arg: 0,
        fd: kernel::args(regs).first as i32,
    };
    emit::call(tally, &fact, None);
}

/// Room for a mapping was found.
#[inline(always)]
pub fn mapping(ctx: &BtfTracePointContext) {
    let regs = kernel::current_registers();
    let number = kernel::number(regs);
    let address: u64 = ctx.arg(0);
    if number != nr::MMAP || kernel::args(regs).fourth & MAP_TYPE != MAP_SHARED {
        return;
    }
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: only the presence counts.
    if unsafe { PROCESSES.get((thread >> 32) as u32) }.is_none() {
        return;
    }
    let fact = Fact {
        thread,
        kind: Kind::Map,
        flags: 0,
        syscall: number,
        result: 0,
        hub: 0,
        arg: address,
        fd: -1,
    };
    if let Some(tally) = Tally::this_cpu(false) {
        emit::other(tally, &fact, None);
    }
}

/// An fd may be something else from now on.
#[inline(always)]
fn close(pid: u32, base: &Fact, args: &Args, process: &mut Process) {
    match base.syscall {
        nr::CLOSE => fds::forget(pid, args.first),
        nr::DUP2 | nr::DUP3 => fds::forget(pid, args.second),
        // A range: everything remembered of this process is void.
        _ => process.image += 1,
    }
}

/// A socket sent something, or failed to, by whichever call.
#[inline(always)]
pub fn socket_sent(ctx: &BtfTracePointContext, turn: Turn) {
    let who = kernel::who();
    if !turn.is_mine(who.tid) || is_bystander(who.pid) {
        return;
    }
    let inode = kernel::socket_inode(ctx.arg(0));
    if let Some((slot, at)) = fds::recent(inode, who) {
        if let Some((tally, fact)) = on_socket(ctx, who, Kind::Ring, inode) {
            tally.used(who.pid, slot);
            emit::call(tally, &fact, Some(at));
        }
    } else if let Some(process) = PROCESSES.get_ptr_mut(who.pid)
        && let Some((tally, fact)) = on_socket(ctx, who, Kind::Ring, 0)
    {
        // SAFETY: as in `sys_exit`.
        let process = unsafe { &mut *process };
        sent(tally, fact, process, Some(who), fds::socket(inode));
    }
}

/// A socket received something, or failed to, by whichever call.
#[inline(always)]
pub fn socket_received(ctx: &BtfTracePointContext, turn: Turn) {
    let who = kernel::who();
    if !turn.is_mine(who.tid) || is_bystander(who.pid) {
        return;
    }
    let result: i64 = ctx.arg(1);
    // Most calls of a runtime: a look at the doorbell that used to be rung last, which found nothing.
    if result as i32 == -EAGAIN
        && let Some(tally) = Tally::this_cpu(false)
        && tally.last(who.pid).is_some()
    {
        tally.count(Counter::Calls);
        return tally.count(Counter::FilteredEmpty);
    }
    let inode = kernel::socket_inode(ctx.arg(0));
    let flags: u64 = ctx.arg(2);
    let peeked = flags & MSG_PEEK != 0;
    if let Some((slot, at)) = fds::recent(inode, who) {
        if let Some((tally, fact)) = on_socket(ctx, who, Kind::Take, inode) {
            if fact.result == -EAGAIN || peeked {
                return tally.count(Counter::FilteredEmpty);
            }
            tally.used(who.pid, slot);
            emit::call(tally, &fact, Some(at));
        }
    } else if let Some(process) = PROCESSES.get_ptr_mut(who.pid)
        && let Some((tally, fact)) = on_socket(ctx, who, Kind::Take, 0)
    {
        if fact.result == -EAGAIN {
            return tally.count(Counter::FilteredEmpty);
        }
        // SAFETY: as in `sys_exit`.
        let process = unsafe { &mut *process };
        received(tally, fact, process, Some(who), fds::socket(inode), peeked);
    }
}

/// What every call on a socket by a process of the tree has in common.
#[inline(always)]
fn on_socket(
    ctx: &BtfTracePointContext,
    who: Who,
    kind: Kind,
    inode: u64,
) -> Option<(Tally, Fact)> {
    let tally = Tally::this_cpu(false)?;
    tally.count(Counter::Calls);
    let result: i64 = ctx.arg(1);
    let mut fact = Fact {
        thread: who.thread(),
        kind,
        flags: 0,
        syscall: NO_SYSCALL,
        result: result as i32,
        hub: 0,
        arg: inode,
        fd: -1,
    };
    // What the call and its fd were matters only if it failed, and reading that costs as much as half a lookup.
    if fact.result < 0 && fact.result != -EAGAIN {
        let regs = kernel::current_registers();
        fact.syscall = kernel::number(regs);
        fact.fd = kernel::args(regs).first as i32;
    }
    Some((tally, fact))
}

/// A call of a doorbell end, with where the process maps the hub; remembered for the next time.
#[inline(always)]
fn at_doorbell(
    tally: Tally,
    fact: &Fact,
    process: &mut Process,
    who: Option<Who>,
    slot: u32,
    doorbell: &'static Doorbell,
) {
    process.last_doorbell = slot + 1;
    let at = At::mapped_by(process, doorbell);
    if let Some(who) = who {
        tally.used(who.pid, slot);
        if at.base != 0 {
            fds::used(slot, at.base, who);
        }
    }
    emit::call(tally, fact, Some(at));
}

#[inline(always)]
fn send(tally: Tally, pid: u32, base: Fact, process: &mut Process) {
    let fd = base.arg as i32;
    let fact = Fact { fd, ..base };
    let socket = fds::look_up(pid, process, fd);
    sent(tally, fact, process, None, socket);
}

#[inline(always)]
fn sent(tally: Tally, base: Fact, process: &mut Process, who: Option<Who>, socket: Fd) {
    let fact = Fact {
        kind: Kind::Ring,
        ..base
    };
    let participant = process.flags & PROC_PARTICIPANT != 0;
    match socket {
        Fd::Doorbell(inode, slot, doorbell) => {
            let fact = Fact { arg: inode, ..fact };
            at_doorbell(tally, &fact, process, who, slot, doorbell);
        }
        // One byte on a socket nobody knows, in a process with a hub: perhaps a doorbell made a moment ago; or a failure
        // on a socket that took a doorbell's place.
        Fd::Unknown(inode)
            if participant
                && (base.result == 1 || base.result < 0 && base.result != -EAGAIN)
                && base.syscall != nr::WRITE =>
        {
            emit::call(tally, &Fact { arg: inode, ..fact }, None);
        }
        // A doorbell whose fd was closed or taken by something else: the signal is lost, and the daemon remembers
        // what the fd was.
        Fd::Closed | Fd::Unknown(_) | Fd::Foreign
            if participant && (base.result == -EBADF || base.result == -ENOTSOCK) =>
        {
            emit::call(tally, &Fact { arg: 0, ..fact }, None);
        }
        Fd::Closed | Fd::Unknown(_) | Fd::Foreign => tally.count(Counter::FilteredForeign),
    }
}

#[inline(always)]
fn receive(tally: Tally, pid: u32, base: Fact, args: &Args, process: &mut Process) {
    if base.result == -EAGAIN {
        return tally.count(Counter::FilteredEmpty);
    }
    let fd = base.arg as i32;
    let peeked = base.syscall == nr::RECVFROM && args.fourth & MSG_PEEK != 0
        || base.syscall == nr::RECVMSG && args.third & MSG_PEEK != 0;
    let socket = fds::look_up(pid, process, fd);
    received(tally, Fact { fd, ..base }, process, None, socket, peeked);
}

#[inline(always)]
fn received(
    tally: Tally,
    base: Fact,
    process: &mut Process,
    who: Option<Who>,
    socket: Fd,
    peeked: bool,
) {
    let fact = Fact {
        kind: Kind::Take,
        ..base
    };
    match socket {
        Fd::Doorbell(..) if peeked => tally.count(Counter::FilteredEmpty),
        Fd::Doorbell(inode, slot, doorbell) => {
            let fact = Fact { arg: inode, ..fact };
            at_doorbell(tally, &fact, process, who, slot, doorbell);
        }
        Fd::Unknown(inode)
            if process.flags & PROC_PARTICIPANT != 0
                && base.result == 1
                && base.syscall != nr::READ =>
        {
            emit::call(tally, &Fact { arg: inode, ..fact }, None);
        }
        Fd::Closed | Fd::Unknown(_) | Fd::Foreign => tally.count(Counter::FilteredForeign),
    }
}

#[inline(always)]
fn wait(tally: Tally, base: Fact, args: &Args, process: &Process) {
    let polled = base.result == 0 && args.fourth == 0;
    if process.flags & PROC_PARTICIPANT == 0 || polled {
        return tally.count(Counter::FilteredWait);
    }
    emit::call(
        tally,
        &Fact {
            kind: Kind::Wake,
            ..base
        },
        None,
    );
}

#[inline(always)]
fn futex(tally: Tally, base: Fact, args: &Args, process: &Process) {
    let address = base.arg;
    let command = args.second & FUTEX_COMMAND;
    for mapping in &process.hubs {
        if mapping.hub == 0 || address < mapping.base || address >= mapping.base + mapping.len {
            continue;
        }
        let fact = Fact {
            hub: mapping.hub,
            arg: address - mapping.base,
            ..base
        };
        match command {
            FUTEX_WAKE | FUTEX_WAKE_BITSET if base.result > 0 => {
                return emit::call(
                    tally,
                    &Fact {
                        kind: Kind::FutexWake,
                        ..fact
                    },
                    None,
                );
            }
            FUTEX_WAIT | FUTEX_WAIT_BITSET if base.result != -EAGAIN => {
                return emit::call(
                    tally,
                    &Fact {
                        kind: Kind::Wake,
                        ..fact
                    },
                    None,
                );
            }
            _ => return tally.count(Counter::FilteredFutex),
        }
    }
    tally.count(Counter::FilteredFutex);
}

/// The current task is switched out; `state` is 0 if it stays runnable.
#[inline(always)]
pub fn sched_switch(ctx: &BtfTracePointContext, state: u32, with_registers: bool) {
    let preempted: u64 = ctx.arg(0);
    if preempted & 0xff != 0 || state & ASLEEP == 0 {
        return;
    }
    let Some(tally) = Tally::this_cpu(!with_registers) else {
        return;
    };
    let Sleeper::Participant(thread, at) = sleeper(ctx, tally, with_registers) else {
        return;
    };
    let (syscall, arg) = if with_registers {
        registers(ctx)
    } else {
        (NO_SYSCALL, 0)
    };
    let fact = Fact {
        thread,
        kind: Kind::Sleep,
        flags: 0,
        syscall,
        result: 0,
        hub: 0,
        arg,
        fd: -1,
    };
    emit::other(tally, &fact, at);
}

/// Whose thread falls asleep.
enum Sleeper {
    /// Nobody's that matters.
    Bystander,
    /// A thread of a process that uses doorbells or maps a hub, with the doorbell that it used last.
    Participant(u64, Option<At>),
}

#[inline(always)]
fn sleeper(ctx: &BtfTracePointContext, tally: Tally, with_loads: bool) -> Sleeper {
    let thread = if with_loads {
        let who = kernel::who_is(ctx.arg(1));
        if is_bystander(who.pid) {
            return Sleeper::Bystander;
        }
        let last = tally.last(who.pid);
        if let Some(at) = last.and_then(|slot| fds::recent_at(slot, who)) {
            return Sleeper::Participant(who.thread(), Some(at));
        }
        who.thread()
    } else {
        bpf_get_current_pid_tgid()
    };
    // SAFETY: as in `sys_exit`.
    match unsafe { PROCESSES.get((thread >> 32) as u32) } {
        Some(process) if process.flags & PROC_PARTICIPANT != 0 => {
            let doorbell = fds::last_used(process);
            let at = doorbell.map(|doorbell| At::mapped_by(process, doorbell));
            Sleeper::Participant(thread, at)
        }
        _ => Sleeper::Bystander,
    }
}

/// Number and first argument of the call in which the current task goes to sleep.
#[inline(always)]
fn registers(ctx: &BtfTracePointContext) -> (u16, u64) {
    let task: *mut aya_ebpf::bindings::task_struct = ctx.arg(1);
    // SAFETY: the first argument of `sched_switch` after `preempt` is the task, which the verifier knows as such;
    // the helper returns its registers as a BTF-typed pointer.
    let regs = unsafe { aya_ebpf::helpers::generated::bpf_task_pt_regs(task) } as *const u8;
    (kernel::number(regs), kernel::args(regs).first)
}
