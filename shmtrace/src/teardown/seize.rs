//! Keeping a process from starting others, so that nobody but it notices.
//!
//! A thread that is traced with `PTRACE_O_TRACEFORK` stops at its next `fork`, `vfork` or `clone`, and its child stops
//! before its first instruction. Until then the process runs on, and its parent is told nothing; with SIGSTOP it would
//! be, and some parents (`sudo`) stop themselves when their command does.

use std::{fs, io, ptr};

/// Threads are looked for this often before a process that makes them without end is taken as it is.
const MOST_ROUNDS: usize = 64;

/// Seizes every thread of a process. Everything seized is killed when this program ends, at the latest.
pub(super) fn seize(pid: u32) -> io::Result<()> {
    let mut seized: Vec<i32> = Vec::new();
    for _ in 0..MOST_ROUNDS {
        let mut more = false;
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let name = entry?.file_name();
            let Some(tid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            if !seized.contains(&tid) {
                seize_thread(tid)?;
                seized.push(tid);
                more = true;
            }
        }
        if !more {
            break;
        }
    }
    Ok(())
}

fn seize_thread(tid: i32) -> io::Result<()> {
    let options = libc::PTRACE_O_EXITKILL
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACECLONE;
    let none = ptr::null_mut::<libc::c_void>();
    // SAFETY: PTRACE_SEIZE takes no pointers; its data argument is a set of options.
    let result = unsafe { libc::ptrace(libc::PTRACE_SEIZE, tid, none, options as usize) };
    let error = io::Error::last_os_error();
    // A thread that has ended starts nothing.
    if result == 0 || error.raw_os_error() == Some(libc::ESRCH) {
        Ok(())
    } else {
        Err(error)
    }
}

/// Children of seized processes that were started since: traced by this thread from their birth.
pub(super) fn newborn() -> Vec<u32> {
    let mut pids = Vec::new();
    loop {
        let mut status = 0;
        // SAFETY: `status` is a live int for the kernel to fill.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::WNOHANG) };
        match u32::try_from(pid) {
            Ok(0) | Err(_) => return pids,
            Ok(pid) if libc::WIFSTOPPED(status) => pids.push(pid),
            Ok(_) => {}
        }
    }
}
