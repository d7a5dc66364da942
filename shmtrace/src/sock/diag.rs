//! The netlink socket that `unix_diag` is asked through.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    time::Duration,
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink,
    sockopt::{Timeout, set_socket_timeout},
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::codec::{Reply, UnixSocket, parse_replies, request};

/// The kernel answers at once; this only keeps a surprise from blocking the daemon.
const PATIENCE: Duration = Duration::from_millis(100);
/// Bytes of one datagram of an answer; the kernel fills at most 32 KiB.
const ANSWER: usize = 32 << 10;
/// Stale answers (of a request that timed out) that are skipped before giving up.
const MAX_STALE: u32 = 16;

/// A `sock_diag` netlink socket; it sees the network namespace that it was opened in.
#[derive(Debug)]
pub struct DiagSocket {
    socket: OwnedFd,
    sequence: u32,
    answer: Vec<u8>,
    replies: Vec<Reply>,
}

/// One that is open already, and proven.
impl From<OwnedFd> for DiagSocket {
    fn from(socket: OwnedFd) -> Self {
        Self {
            socket,
            sequence: 0,
            answer: vec![0; ANSWER],
            replies: Vec::new(),
        }
    }
}

impl From<DiagSocket> for OwnedFd {
    fn from(diag: DiagSocket) -> Self {
        diag.socket
    }
}

impl DiagSocket {
    /// Opens one in the namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::SOCK_DIAG),
        )?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        let mut diag = Self::from(socket);
        diag.prove_itself()?;
        Ok(diag)
    }

    /// A kernel without `unix_diag` gives the same answer as one without the socket; so look at one that is there.
    fn prove_itself(&mut self) -> io::Result<()> {
        let (sample, _other) = UnixDatagram::pair()?;
        let inode = rustix::fs::fstat(&sample)?.st_ino;
        let seen = self.look(u32::try_from(inode).map_err(io::Error::other)?)?;
        seen.map(|_| ()).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::Unsupported,
                "the kernel has no unix_diag: load the module (modprobe unix_diag) or set CONFIG_UNIX_DIAG",
            )
        })
    }

    /// Opens one in another network namespace, by a thread that enters it and ends.
    pub fn open_in(namespace: &impl AsFd) -> io::Result<Self> {
        let namespace = namespace.as_fd();
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
                    Self::open()
                })
                .join()
                .unwrap_or_else(|_| {
                    Err(io::Error::other(
                        "the thread that entered the namespace died",
                    ))
                })
        })
    }

    /// One socket, `None` if there is none of this inode.
    pub fn look(&mut self, inode: u32) -> io::Result<Option<UnixSocket>> {
        self.ask(Some(inode))?;
        for _ in 0..MAX_STALE {
            self.receive()?;
            match self.replies.first() {
                Some(Reply::Socket(socket)) if socket.inode == inode => return Ok(Some(*socket)),
                Some(Reply::Error(errno)) if *errno == rustix::io::Errno::NOENT.raw_os_error() => {
                    return Ok(None);
                }
                Some(Reply::Error(errno)) => return Err(io::Error::from_raw_os_error(*errno)),
                Some(_) => return Err(io::ErrorKind::InvalidData.into()),
                None => {}
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Every unix socket of the namespace.
    pub fn dump(&mut self) -> io::Result<Vec<UnixSocket>> {
        self.ask(None)?;
        let mut sockets = Vec::new();
        let mut stale = 0;
        loop {
            self.receive()?;
            if self.replies.is_empty() {
                stale += 1;
                if stale > MAX_STALE {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            for reply in &self.replies {
                match reply {
                    Reply::Socket(socket) => sockets.push(*socket),
                    Reply::Done => return Ok(sockets),
                    Reply::Error(errno) => return Err(io::Error::from_raw_os_error(*errno)),
                }
            }
        }
    }

    fn ask(&mut self, inode: Option<u32>) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let kernel = netlink::SocketAddrNetlink::new(0, 0);
        let request = request(inode, self.sequence);
        rustix::net::sendto(&self.socket, &request, SendFlags::empty(), &kernel)?;
        Ok(())
    }

    fn receive(&mut self) -> io::Result<()> {
        let (filled, length) =
            rustix::net::recv(&self.socket, &mut self.answer[..], RecvFlags::TRUNC)?;
        if length > filled {
            return Err(io::Error::other("unix_diag answer is longer than 32 KiB"));
        }
        self.replies.clear();
        parse_replies(&self.answer[..filled], self.sequence, &mut self.replies)
            .map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use std::os::{
        fd::{AsRawFd as _, RawFd},
        unix::fs::MetadataExt as _,
    };

    use super::*;
    use crate::sock::DATAGRAM;

    fn inode(fd: RawFd) -> u32 {
        std::fs::metadata(format!("/proc/self/fd/{fd}"))
            .unwrap()
            .ino()
            .try_into()
            .unwrap()
    }

    #[test]
    fn a_pair_and_its_queue_are_seen_without_touching_them() {
        let (host, plugin) = UnixDatagram::pair().unwrap();
        let (host_inode, plugin_inode) = (inode(host.as_raw_fd()), inode(plugin.as_raw_fd()));
        let mut diag = DiagSocket::open().unwrap();

        let empty = diag.look(plugin_inode).unwrap().unwrap();
        assert_eq!(
            (empty.kind, empty.peer, empty.receivable),
            (DATAGRAM, Some(host_inode), 0)
        );

        for _ in 0..3 {
            host.send(b"x").unwrap();
        }
        let rung = diag.look(plugin_inode).unwrap().unwrap();
        assert_eq!(rung.receivable, 1, "the size of the first datagram");
        let ringer = diag.look(host_inode).unwrap().unwrap();
        assert!(ringer.unreceived > 0 && ringer.unreceived.is_multiple_of(3));

        drop((host, plugin));
        assert_eq!(diag.look(plugin_inode).unwrap(), None);
    }

    #[test]
    fn a_dump_has_every_socket_of_the_namespace() {
        let pairs: Vec<_> = (0..200).map(|_| UnixDatagram::pair().unwrap()).collect();
        let dump = DiagSocket::open().unwrap().dump().unwrap();
        for (left, right) in &pairs {
            let (left, right) = (inode(left.as_raw_fd()), inode(right.as_raw_fd()));
            assert!(
                dump.iter()
                    .any(|socket| socket.inode == left && socket.peer == Some(right))
            );
        }
    }

    #[test]
    #[ignore = "privileged: run by cargo xtask test"]
    fn a_socket_of_another_network_namespace_is_seen_from_here() {
        let (send, receive) = std::sync::mpsc::channel();
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            // SAFETY: only this thread leaves the namespace; it shares nothing that depends on it.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
                .unwrap();
            let (left, right) = UnixDatagram::pair().unwrap();
            let namespace = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
            send.send((namespace, inode(left.as_raw_fd()), inode(right.as_raw_fd())))
                .unwrap();
            let _closed = gate.recv();
        });
        let (namespace, left, right) = receive.recv().unwrap();
        assert_eq!(
            DiagSocket::open().unwrap().look(left).unwrap(),
            None,
            "not in ours"
        );
        let seen = DiagSocket::open_in(&namespace)
            .unwrap()
            .look(left)
            .unwrap()
            .unwrap();
        assert_eq!(seen.peer, Some(right));
        drop(release);
        other.join().unwrap();
    }
}
