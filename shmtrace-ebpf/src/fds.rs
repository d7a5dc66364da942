//! Which socket an fd is.
//!
//! Following the kernel's pointers from a task to a socket's inode takes seven probe reads, more than all the rest of a
//! record. So the answer is remembered for each fd of each process, until something could have changed it: close, dup2,
//! dup3, `close_range`, exec, or the daemon describing another socket.

use shmtrace_common::{Doorbell, FdKey, KnownFd, MAX_DOORBELLS, Process, SIDE_IGNORED};

use crate::{
    emit::At,
    kernel::{self, Who},
    maps::{DOORBELLS, EPOCH, FDS, SOCKETS},
};

/// What an fd turned out to be.
pub enum Fd {
    /// One end of a doorbell: socket inode, slot, and what is known of it.
    Doorbell(u64, u32, &'static Doorbell),
    /// A file or socket about which the daemon knows nothing (yet).
    Unknown(u64),
    /// Known not to matter.
    Foreign,
    /// No open file.
    Closed,
}

/// Looks an fd of the current process up.
#[inline(always)]
pub fn look_up(pid: u32, process: &Process, fd: i32) -> Fd {
    let key = FdKey { pid, fd: fd as u32 };
    let epoch = EPOCH.get(0).copied().unwrap_or(0);
    // SAFETY: plain old data, written whole; a torn copy would need a close and reuse of the fd on another CPU during
    // this call, and the call itself would be torn then.
    if let Some(known) = unsafe { FDS.get(key) }
        && known.image == process.image
        && (known.inode != 0 || known.epoch == epoch)
    {
        if known.inode == 0 {
            return Fd::Foreign;
        }
        return doorbell(known.inode, known.slot);
    }
    let Some(inode) = kernel::fd_inode(fd) else {
        return Fd::Closed;
    };
    // SAFETY: the value is one word.
    let Some(slot) = (unsafe { SOCKETS.get(inode) }).copied() else {
        remember(key, process, 0, 0, epoch);
        return Fd::Unknown(inode);
    };
    remember(key, process, inode, slot, epoch);
    doorbell(inode, slot)
}

/// A doorbell end that this very process used before, and where it maps the hub: all that a record needs, for two array
/// lookups. `None` says nothing.
#[inline(always)]
pub fn recent(inode: u64, who: Who) -> Option<(u32, At)> {
    at_slot(own_slot(inode), inode, who)
}

/// The same by slot.
#[inline(always)]
pub fn recent_at(slot: u32, who: Who) -> Option<At> {
    let inode = DOORBELLS.get(slot)?.inode;
    Some(at_slot(slot, inode, who)?.1)
}

#[inline(always)]
fn at_slot(slot: u32, inode: u64, who: Who) -> Option<(u32, At)> {
    let doorbell = DOORBELLS.get(slot)?;
    let base = doorbell.base;
    let own = doorbell.inode == inode && base != 0 && doorbell.seal == base ^ secret(who);
    own.then_some((slot, At { doorbell, base }))
}

/// Remembers that the current process uses this end and where it maps the hub.
///
/// Another process that shares the end may write at the same time: the seal then fits neither, or one of them.
#[inline(always)]
pub fn used(slot: u32, base: u64, who: Who) {
    if let Some(doorbell) = DOORBELLS.get_ptr_mut(slot) {
        // SAFETY: aligned words of a map's value; see above for who else writes them.
        unsafe {
            (*doorbell).base = base;
            (*doorbell).seal = base ^ secret(who);
        }
    }
}

/// Differs for every process, for each program that it executes, and whenever the daemon changes a table.
#[inline(always)]
fn secret(who: Who) -> u64 {
    let epoch = EPOCH.get(0).copied().unwrap_or(0);
    u64::from(who.pid) | (who.image & 0xffff) << 32 | u64::from(epoch) << 48
}

/// Where the daemon puts a socket unless another has the place.
#[inline(always)]
fn own_slot(inode: u64) -> u32 {
    inode as u32 % MAX_DOORBELLS
}

/// What the socket with this inode is.
#[inline(always)]
pub fn socket(inode: u64) -> Fd {
    // SAFETY: the value is one word.
    match unsafe { SOCKETS.get(inode) }.copied() {
        Some(slot) => doorbell(inode, slot),
        None => Fd::Unknown(inode),
    }
}

/// The doorbell that a process used last.
#[inline(always)]
pub fn last_used(process: &Process) -> Option<&'static Doorbell> {
    DOORBELLS.get(process.last_doorbell.checked_sub(1)?)
}

/// Forgets what an fd was.
#[inline(always)]
pub fn forget(pid: u32, fd: u64) {
    let _was_not_known = FDS.remove(FdKey { pid, fd: fd as u32 });
}

#[inline(always)]
fn doorbell(inode: u64, slot: u32) -> Fd {
    match DOORBELLS.get(slot) {
        Some(doorbell) if doorbell.side != SIDE_IGNORED => Fd::Doorbell(inode, slot, doorbell),
        _ => Fd::Foreign,
    }
}

#[inline(always)]
fn remember(key: FdKey, process: &Process, inode: u64, slot: u32, epoch: u32) {
    let known = KnownFd {
        image: process.image,
        inode,
        slot,
        epoch,
    };
    // If it cannot be remembered it is looked up again.
    let _full = FDS.insert(key, known, 0);
}
