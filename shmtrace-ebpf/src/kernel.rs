//! Reading kernel structures: registers of a call, the socket behind an fd.

use aya_ebpf::helpers::{
    bpf_get_current_task, bpf_probe_read_kernel,
    generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
};
use shmtrace_common::NO_SYSCALL;

use crate::maps::OFFSETS;

/// Arguments of a call as its registers hold them at the exit.
#[derive(Clone, Copy)]
pub struct Args {
    pub first: u64,
    pub second: u64,
    pub third: u64,
    pub fourth: u64,
}

/// `struct pt_regs` up to the fields that are used.
#[cfg(not(bpf_target_arch = "aarch64"))]
mod regs {
    // Offsets of arch/x86/include/asm/ptrace.h, which are user-visible through ptrace and so do not change.
    pub const NUMBER: usize = 120;
    pub const ARGS: [usize; 4] = [112, 104, 96, 56];
}
#[cfg(bpf_target_arch = "aarch64")]
mod regs {
    // arch/arm64/include/asm/ptrace.h: regs[31], sp, pc, pstate, orig_x0, syscallno (s32).
    pub const NUMBER: usize = 280;
    pub const ARGS: [usize; 4] = [272, 8, 16, 24];
}

/// The number of the call of a BTF-typed `struct pt_regs *`; what is no number in range is [`NO_SYSCALL`].
#[inline(always)]
pub fn number(regs: *const u8) -> u16 {
    // SAFETY: the verifier checks the load against the BTF type of the pointer.
    let number = unsafe { read(regs, regs::NUMBER) } as u32;
    if number < u32::from(NO_SYSCALL) {
        number as u16
    } else {
        NO_SYSCALL
    }
}

/// The arguments of the call of a BTF-typed `struct pt_regs *`.
///
/// All are read at once and volatile: read conditionally, LLVM merges the pointers and the verifier refuses.
#[inline(always)]
pub fn args(regs: *const u8) -> Args {
    // SAFETY: as above.
    unsafe {
        Args {
            first: read(regs, regs::ARGS[0]),
            second: read(regs, regs::ARGS[1]),
            third: read(regs, regs::ARGS[2]),
            fourth: read(regs, regs::ARGS[3]),
        }
    }
}

#[inline(always)]
unsafe fn read(base: *const u8, offset: usize) -> u64 {
    #[expect(
        clippy::cast_ptr_alignment,
        reason = "registers are words, and their structure is aligned as such"
    )]
    // SAFETY: the caller's pointer is BTF-typed, and the verifier checks the access.
    unsafe {
        core::ptr::read_volatile(base.add(offset).cast::<u64>())
    }
}

/// The inode number of a BTF-typed `struct sock *`, 0 for a socket without a file (the kernel's own).
///
/// Four plain loads: the verifier checks each against its type, and a null pointer on the way reads as 0.
#[inline(always)]
pub fn socket_inode(sock: *const u8) -> u64 {
    let offsets = OFFSETS.load();
    // SAFETY: BTF-typed pointers, whose loads the verifier turns into ones that cannot fault.
    unsafe {
        let socket = read(sock, offsets.sock_socket as usize) as *const u8;
        let file = read(socket, offsets.socket_file as usize) as *const u8;
        let inode = read(file, offsets.file_inode as usize) as *const u8;
        read(inode, offsets.inode_ino as usize)
    }
}

/// The current process, as far as it can be told without looking it up anywhere.
#[derive(Clone, Copy)]
pub struct Who {
    /// Its pid (tgid) in the initial pid namespace.
    pub pid: u32,
    /// Its thread there.
    pub tid: u32,
    /// Grows with each program that it executes.
    pub image: u64,
}

/// The current process by plain loads, which cost a fraction of a helper; from 5.11.
#[inline(always)]
pub fn who() -> Who {
    // SAFETY: a helper without arguments.
    who_is(unsafe { bpf_get_current_task_btf() } as *const u8)
}

/// The same of a BTF-typed `struct task_struct *`, where that is at hand.
#[inline(always)]
pub fn who_is(task: *const u8) -> Who {
    let offsets = OFFSETS.load();
    // SAFETY: a BTF-typed pointer, as in `socket_inode`.
    unsafe {
        let word = |offset: u32| core::ptr::read_volatile(task.add(offset as usize).cast::<u32>());
        Who {
            pid: word(offsets.task_tgid),
            tid: word(offsets.task_pid),
            image: read(task, offsets.task_exec_id as usize),
        }
    }
}

impl Who {
    /// As `bpf_get_current_pid_tgid` puts it.
    #[inline(always)]
    pub fn thread(self) -> u64 {
        u64::from(self.pid) << 32 | u64::from(self.tid)
    }
}

/// The registers of the system call that the current task is in, as a BTF-typed `struct pt_regs *`.
#[inline(always)]
pub fn current_registers() -> *const u8 {
    // SAFETY: helpers that give BTF-typed pointers to the current task and its registers.
    unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as *const u8 }
}

/// The inode number behind `fd` of the current task, `None` if it names no open file.
#[inline(always)]
pub fn fd_inode(fd: i32) -> Option<u64> {
    let offsets = OFFSETS.load();
    // SAFETY: probe reads check each address; a wrong offset yields a wrong value or an error, never a fault.
    unsafe {
        let task = bpf_get_current_task();
        let files = pointer(task, offsets.task_files)?;
        let table = pointer(files, offsets.files_fdt)?;
        let max: u32 =
            bpf_probe_read_kernel((table + u64::from(offsets.fdt_max_fds)) as *const u32).ok()?;
        if fd < 0 || fd as u32 >= max {
            return None;
        }
        let array = pointer(table, offsets.fdt_fd)?;
        let file = pointer(array, fd as u32 * 8)?;
        let inode = pointer(file, offsets.file_inode)?;
        bpf_probe_read_kernel((inode + u64::from(offsets.inode_ino)) as *const u64).ok()
    }
}

/// The non-null pointer at `base + offset`.
#[inline(always)]
unsafe fn pointer(base: u64, offset: u32) -> Option<u64> {
    // SAFETY: as for the caller.
    match unsafe { bpf_probe_read_kernel((base + u64::from(offset)) as *const u64) } {
        Ok(0) | Err(_) => None,
        Ok(address) => Some(address),
    }
}

/// `task->__state` by probe read, for kernels whose `sched_switch` does not pass it; 0 (running) if unreadable.
#[inline(always)]
pub fn task_state(task: *const u8) -> u32 {
    field(task, OFFSETS.load().task_state)
}

/// `task->tgid`, 0 if unreadable.
#[inline(always)]
pub fn task_tgid(task: *const u8) -> u32 {
    field(task, OFFSETS.load().task_tgid)
}

/// Whether the thread that ends is the last of its process: `task->signal->live` has reached 0.
#[inline(always)]
pub fn is_last_thread(task: *const u8) -> bool {
    let offsets = OFFSETS.load();
    // SAFETY: probe reads, as above.
    unsafe {
        let Some(signal) = pointer(task as u64, offsets.task_signal) else {
            return false;
        };
        bpf_probe_read_kernel((signal + u64::from(offsets.signal_live)) as *const i32) == Ok(0)
    }
}

#[inline(always)]
fn field(base: *const u8, offset: u32) -> u32 {
    // SAFETY: probe read, as above.
    unsafe { bpf_probe_read_kernel((base as u64 + u64::from(offset)) as *const u32).unwrap_or(0) }
}
