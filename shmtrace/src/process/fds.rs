//! A process's file descriptors: sockets, and what an epoll instance watches.

use std::{io, os::fd::AsFd as _};

use rustix::fs::{Dir, OFlags};
use shmtrace_engine::{SocketInode, Tid};

use super::{Process, read_into};

/// File descriptors of one process that are looked at; a process with more has its highest ones left out.
pub const MAX_FDS: usize = 65_536;
/// Epoll instances of one process that are looked into.
const MAX_POLLS: usize = 256;

/// A socket that a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeldSocket {
    /// The socket.
    pub inode: SocketInode,
    /// A file descriptor of it in the process.
    pub fd: u32,
}

/// The sockets of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sockets {
    /// Every socket among its fds, by inode and fd.
    pub held: Vec<HeldSocket>,
    /// Those that one of its epoll instances watches.
    pub watched: Vec<SocketInode>,
    /// Those that one of its threads sleeps for now.
    pub awaited: Vec<SocketInode>,
    /// It has more than [`MAX_FDS`] fds, and the rest was not looked at.
    pub cut: bool,
}

/// One file that an epoll instance watches, a `tfd:` line of `/proc/PID/fdinfo/FD`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpollEntry {
    /// The fd as it was when added; the file is what counts.
    pub fd: u32,
    /// The events asked for; a one-shot entry that fired asks for none.
    pub events: u32,
    /// The watched file's inode.
    pub inode: u64,
    /// The device of that inode.
    pub device: u64,
}

impl Process {
    /// The sockets among its fds, and which of them it watches.
    pub fn sockets(&self, buffer: &mut Vec<u8>) -> io::Result<Sockets> {
        self.sockets_among(MAX_FDS, MAX_POLLS, buffer)
    }

    /// The same of so many fds and epoll instances at most.
    fn sockets_among(
        &self,
        most: usize,
        most_polls: usize,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Sockets> {
        let fds = self.open_at("fd", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut held = Vec::new();
        let mut polls = Vec::new();
        let mut link = Vec::with_capacity(64);
        let mut entries = Dir::read_from(&fds)?;
        for entry in entries.by_ref().take(most) {
            let entry = entry?;
            let Some(fd) = entry
                .file_name()
                .to_str()
                .ok()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            // The fd may be closed by now: then it is none.
            let Ok(target) = rustix::fs::readlinkat(&fds, entry.file_name(), link) else {
                link = Vec::with_capacity(64);
                continue;
            };
            if let Some(inode) = socket_inode(target.to_bytes()) {
                held.push(HeldSocket { inode, fd });
            } else if target.to_bytes() == b"anon_inode:[eventpoll]" {
                polls.push(fd);
            }
            link = target.into_bytes();
        }
        let cut = entries.next().is_some();
        held.sort_unstable();
        let mut watched = Vec::new();
        for fd in polls.into_iter().take(most_polls) {
            let entries = self
                .epoll_entries(Tid(self.id().pid), fd, buffer)
                .unwrap_or_default();
            watched.extend(entries.iter().map(|entry| SocketInode(entry.inode)));
        }
        let mut awaited = self.awaited_sockets(buffer);
        for some in [&mut watched, &mut awaited] {
            some.retain(|inode| {
                held.binary_search_by_key(inode, |socket| socket.inode)
                    .is_ok()
            });
            some.sort_unstable();
            some.dedup();
        }
        Ok(Sockets {
            held,
            watched,
            awaited,
            cut,
        })
    }

    /// The socket behind one fd of one thread.
    pub fn socket_of(&self, tid: Tid, fd: u32) -> Option<SocketInode> {
        let link =
            rustix::fs::readlinkat(self.dir(), format!("task/{}/fd/{fd}", tid.0), Vec::new());
        socket_inode(link.ok()?.to_bytes())
    }

    /// Whether it has this socket open. `fd` is where it was seen last, and makes the answer cheap.
    pub fn holds(&self, socket: SocketInode, fd: Option<u32>) -> io::Result<bool> {
        let main = Tid(self.id().pid);
        if fd.is_some_and(|fd| self.socket_of(main, fd) == Some(socket)) {
            return Ok(true);
        }
        let fds = self.open_at("fd", OFlags::RDONLY | OFlags::DIRECTORY)?;
        for entry in Dir::read_from(&fds)?.take(MAX_FDS) {
            let entry = entry?;
            let link = rustix::fs::readlinkat(&fds, entry.file_name(), Vec::with_capacity(64));
            if link.is_ok_and(|link| socket_inode(link.to_bytes()) == Some(socket)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What the epoll instance behind one fd of one thread watches.
    pub fn epoll_entries(
        &self,
        tid: Tid,
        fd: u32,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Vec<EpollEntry>> {
        read_into(
            self.dir.as_fd(),
            &format!("task/{}/fdinfo/{fd}", tid.0),
            buffer,
        )?;
        Ok(buffer
            .split(|byte| *byte == b'\n')
            .filter_map(parse_epoll_line)
            .collect())
    }
}

/// The inode in `socket:[123]`.
pub(super) fn socket_inode(link: &[u8]) -> Option<SocketInode> {
    let digits = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits)
        .ok()?
        .parse()
        .ok()
        .map(SocketInode)
}

/// `tfd:        5 events:     2019 data:     55d7  pos:0 ino:1f1b sdev:8`
pub(super) fn parse_epoll_line(line: &[u8]) -> Option<EpollEntry> {
    let line = std::str::from_utf8(line).ok()?;
    let mut rest = line.strip_prefix("tfd:")?;
    let mut next = |label: &str| -> Option<&str> {
        let after = match label {
            "" => rest,
            label => &rest[rest.find(label)? + label.len()..],
        }
        .trim_start();
        let end = after.find(' ').unwrap_or(after.len());
        rest = &after[end..];
        Some(&after[..end])
    };
    let fd = next("")?.parse().ok()?;
    let events = u32::from_str_radix(next("events:")?, 16).ok()?;
    let inode = u64::from_str_radix(next("ino:")?, 16).ok()?;
    let device = u64::from_str_radix(next("sdev:")?, 16).ok()?;
    Some(EpollEntry {
        fd,
        events,
        inode,
        device,
    })
}

#[cfg(test)]
mod tests {
    use std::os::{fd::AsRawFd as _, unix::net::UnixDatagram};

    use rustix::event::epoll;

    use super::*;

    #[test]
    fn own_sockets_and_epoll_entries_are_found() {
        let (left, right) = UnixDatagram::pair().unwrap();
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        epoll::add(
            &poll,
            &left,
            epoll::EventData::new_u64(7),
            epoll::EventFlags::IN,
        )
        .unwrap();

        let process = Process::open(std::process::id()).unwrap();
        let tid = Tid(rustix::thread::gettid()
            .as_raw_nonzero()
            .get()
            .cast_unsigned());
        let fd = left.as_raw_fd().cast_unsigned();
        let inode = process.socket_of(tid, fd).unwrap();
        let Sockets { held, watched, .. } = process.sockets(&mut Vec::new()).unwrap();
        assert!(held.contains(&HeldSocket { inode, fd }));
        assert!(watched.contains(&inode));
        let right = right.as_raw_fd().cast_unsigned();
        assert!(held.iter().any(|socket| socket.fd == right));

        let entries = process
            .epoll_entries(tid, poll.as_raw_fd().cast_unsigned(), &mut Vec::new())
            .unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!((entries[0].fd, entries[0].inode), (fd, inode.0));
        assert_ne!(entries[0].events & 1, 0);
    }

    #[test]
    fn epoll_instances_beyond_the_most_are_not_looked_into() {
        let (left, _right) = UnixDatagram::pair().unwrap();
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let in_it = epoll::EventFlags::IN;
        epoll::add(&poll, &left, epoll::EventData::new_u64(1), in_it).unwrap();
        let process = Process::open(std::process::id()).unwrap();
        let fd = left.as_raw_fd().cast_unsigned();
        let inode = process.socket_of(Tid(process.id().pid), fd).unwrap();
        let is_watched = |most_polls| {
            let sockets = process.sockets_among(MAX_FDS, most_polls, &mut Vec::new());
            sockets.unwrap().watched.contains(&inode)
        };
        assert!(is_watched(MAX_POLLS) && !is_watched(0));
    }

    #[test]
    fn fds_that_are_not_looked_at_are_known() {
        let (_left, _right) = UnixDatagram::pair().unwrap();
        let process = Process::open(std::process::id()).unwrap();
        let among = |most| {
            let sockets = process.sockets_among(most, MAX_POLLS, &mut Vec::new());
            sockets.unwrap()
        };
        // Input, output and errors are more than one; "." and ".." count too.
        let sockets = among(4);
        assert!(sockets.cut && sockets.held.len() <= 2, "{sockets:?}");
        assert!(!among(MAX_FDS).cut);
    }

    #[test]
    fn other_lines_are_no_entries() {
        assert_eq!(parse_epoll_line(b"pos:\t0"), None);
        assert_eq!(parse_epoll_line(b"tfd:        5 events:     20"), None);
        assert_eq!(
            parse_epoll_line(b"tfd: x events: 1 data: 1 pos:0 ino:1 sdev:1"),
            None
        );
        assert_eq!(socket_inode(b"socket:[12"), None);
        assert_eq!(socket_inode(b"pipe:[12]"), None);
    }
}
