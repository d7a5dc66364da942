//! Processes as `/proc` shows them: identity, threads, mappings, fds and what a thread sleeps on.
//!
//! A [`Process`] holds the directory `/proc/PID` open, so everything read through it belongs to that incarnation: once
//! the process is gone the reads fail, even if the pid was given out again. Nothing here stops, signals or attaches to
//! the process, and every value is parsed as what a stranger wrote.

pub(crate) mod blocking;
mod fds;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod hidden;
mod maps;
mod memory;
mod stack;
mod stat;
mod threads;
mod waits;

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt as _,
    },
    path::PathBuf,
};

use rustix::fs::{Mode, OFlags};
use shmtrace_engine::ProcId;

pub use fds::{EpollEntry, HeldSocket, MAX_FDS, Sockets};
pub use maps::{FileKey, MapEntry, parse_maps};
pub use stat::{Stat, parse_stat};
pub use threads::{MAX_THREADS, parse_syscall};
pub use waits::Doorbells;

/// Bytes of one file of `/proc` that are read at most; more means that something is wrong, not that it is large.
pub(crate) const MAX_FILE: usize = 16 << 20;

/// Bytes of a file that comes in one piece: `status` is the longest, with about 1.5 KiB.
const SHORT_FILE: usize = 4096;

/// One incarnation of a process.
#[derive(Debug)]
pub struct Process {
    dir: OwnedFd,
    id: ProcId,
}

impl Process {
    /// The process that has this pid now.
    pub fn open(pid: u32) -> io::Result<Self> {
        let dir = rustix::fs::open(
            format!("/proc/{pid}"),
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut process = Self {
            dir,
            id: ProcId { pid, start: 0 },
        };
        process.id.start = process.stat()?.start;
        Ok(process)
    }

    /// Which incarnation it is.
    pub fn id(&self) -> ProcId {
        self.id
    }

    /// Whether it lives: not reaped and not a zombie.
    pub fn is_alive(&self) -> bool {
        self.stat().is_ok_and(|stat| !stat.is_dead())
    }

    /// `/proc/PID/stat`.
    pub fn stat(&self) -> io::Result<Stat> {
        let mut buffer = Vec::new();
        self.read_into("stat", &mut buffer)?;
        parse_stat(&buffer).ok_or_else(|| malformed("stat"))
    }

    /// The command line's words; empty for a zombie, while the process execs, and where they lie in memory that is not there.
    pub fn command_line(&self) -> io::Result<Vec<OsString>> {
        let mut buffer = Vec::new();
        self.read_into("stat", &mut buffer)?;
        // The kernel reads them in the process's memory, which the process may have put onto any file.
        if let Some(words) = stat::command_line_at(&buffer)
            && self.bytes_there(words.start, (words.end - words.start) as usize) == 0
        {
            return Ok(Vec::new());
        }
        self.read_into("cmdline", &mut buffer)?;
        Ok(buffer
            .split(|byte| *byte == 0)
            .map(|word| OsString::from_vec(word.to_vec()))
            .collect())
    }

    /// Its memory mappings that are shared file mappings, in address order.
    pub fn shared_mappings(&self, buffer: &mut Vec<u8>) -> io::Result<Vec<MapEntry>> {
        self.read_into("maps", buffer)?;
        Ok(parse_maps(buffer))
    }

    /// Its pids, in its own pid namespace last (`NSpid` of `/proc/PID/status`).
    pub fn namespace_pids(&self) -> io::Result<Vec<u32>> {
        let mut buffer = Vec::new();
        self.read_into("status", &mut buffer)?;
        Ok(stat::status_field(&buffer, b"NSpid:")
            .map(|line| {
                line.split(u8::is_ascii_whitespace)
                    .filter_map(|word| std::str::from_utf8(word).ok()?.parse().ok())
                    .collect()
            })
            .unwrap_or_default())
    }

    /// The mask of signals that it has handlers for (`SigCgt`), bit 0 for signal 1.
    pub fn caught_signals(&self) -> io::Result<u64> {
        let mut buffer = Vec::new();
        self.read_into("status", &mut buffer)?;
        stat::status_field(&buffer, b"SigCgt:")
            .and_then(|mask| u64::from_str_radix(std::str::from_utf8(mask).ok()?, 16).ok())
            .ok_or_else(|| malformed("status"))
    }

    /// The identity of one of its namespaces (`net`, `pid`, ...), as `net:[4026531840]`.
    pub fn namespace(&self, kind: &str) -> io::Result<Vec<u8>> {
        let link = rustix::fs::readlinkat(&self.dir, format!("ns/{kind}"), Vec::new())?;
        Ok(link.into_bytes())
    }

    /// An open handle of one of its namespaces, for `setns`.
    pub fn open_namespace(&self, kind: &str) -> io::Result<OwnedFd> {
        self.open_at(&format!("ns/{kind}"), OFlags::RDONLY)
    }

    /// A path of this process's view of the file system.
    pub fn path_in_root(&self, path: &str) -> PathBuf {
        PathBuf::from(format!(
            "/proc/{}/root/{}",
            self.id.pid,
            path.trim_start_matches('/')
        ))
    }

    /// Its `/proc` directory.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Opens a file below `/proc/PID`.
    pub(crate) fn open_at(&self, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(
            &self.dir,
            name,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
        )?)
    }

    /// Reads a whole file below `/proc/PID`.
    pub(crate) fn read_into(&self, name: &str, buffer: &mut Vec<u8>) -> io::Result<()> {
        read_into(self.dir.as_fd(), name, buffer)
    }
}

/// Reads a whole file below `dir`, replacing what `buffer` held.
fn read_into(dir: BorrowedFd<'_>, name: &str, buffer: &mut Vec<u8>) -> io::Result<()> {
    let file = rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    buffer.clear();
    loop {
        if buffer.len() > MAX_FILE {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let filled = buffer.len();
        buffer.resize((filled + 1024).max(filled * 2), 0);
        let read = match rustix::io::read(&file, &mut buffer[filled..]) {
            Ok(read) => read,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => {
                buffer.truncate(filled);
                return Err(error.into());
            }
        };
        buffer.truncate(filled + read);
        if read == 0 {
            return Ok(());
        }
    }
}

/// Reads a short file below `dir` that the kernel gives in one piece. `None` if it or its thread is gone.
fn read_once(dir: BorrowedFd<'_>, name: &str, buffer: &mut Vec<u8>) -> Option<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty()).ok()?;
    buffer.resize(SHORT_FILE, 0);
    let read = rustix::io::read(&file, &mut buffer[..]).ok()?;
    buffer.truncate(read);
    Some(())
}

/// Whether `/proc` is that of the initial pid namespace, the only one with threads of the kernel: their root is process 2
/// and has no program.
pub fn shows_kernel_threads() -> bool {
    let name = std::fs::read("/proc/2/comm");
    name.is_ok_and(|name| name == b"kthreadd\n") && std::fs::read_link("/proc/2/exe").is_err()
}

/// The pids of a process's children, threads' children included; empty if it is gone or the kernel does not tell.
pub fn children(pid: u32) -> Vec<u32> {
    let mut children = Vec::new();
    let Ok(process) = Process::open(pid) else {
        return children;
    };
    let Ok(tids) = process.tids() else {
        return children;
    };
    let mut buffer = Vec::new();
    for tid in tids {
        if process
            .read_into(&format!("task/{}/children", tid.0), &mut buffer)
            .is_ok()
        {
            children.extend(
                buffer
                    .split(|byte| *byte == b' ')
                    .filter_map(|word| std::str::from_utf8(word).ok()?.trim().parse::<u32>().ok()),
            );
        }
    }
    children
}

fn malformed(name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("/proc file {name} is not as expected"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_itself() {
        let process = Process::open(std::process::id()).unwrap();
        assert!(process.is_alive());
        assert!(process.id().start > 0);
        assert!(
            process
                .namespace_pids()
                .unwrap()
                .contains(&std::process::id())
        );
        assert!(!process.command_line().unwrap().is_empty());
        assert!(process.namespace("net").unwrap().starts_with(b"net:["));
    }

    #[test]
    fn an_ended_process_stays_ended_for_its_holder() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let process = Process::open(child.id()).unwrap();
        assert!(process.is_alive());
        assert!(children(std::process::id()).contains(&child.id()));
        child.kill().unwrap();
        while process.is_alive() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!process.is_alive());
        assert!(process.stat().is_err(), "a reaped process shows nothing");
    }

    #[test]
    fn no_such_process_is_an_error() {
        assert!(Process::open(u32::MAX).is_err());
    }
}
