//! Sockets from outside: which two form a pair, and whether a datagram is queued on one.
//!
//! The kernel's `unix_diag` answers without touching the socket or its owner. Where it is missing, the queue is read
//! through a copy of the fd (`pidfd_getfd`) that is closed at once: a copy kept open would hide the owner's death.
//!
//! A socket belongs to the network namespace it was made in, and `unix_diag` shows those of one namespace; so one
//! netlink socket is kept for each namespace that a traced process lives in.

mod codec;
mod copied;
mod diag;

use std::io;

use shmtrace_engine::SocketInode;

#[cfg(test)]
pub(crate) use codec::tests::answer as example_answer;
pub use codec::{CodecError, Reply, UnixSocket, parse_replies};
pub use copied::pending_through_copy;
pub use diag::DiagSocket;

use crate::{process::Process, rights};

/// `SOCK_DGRAM`, the type of a doorbell.
pub const DATAGRAM: u8 = 2;
/// `SOCK_SEQPACKET`, which keeps its packets apart as well.
pub const SEQUENCED: u8 = 5;
/// Namespaces that are kept open at most.
pub const MAX_NAMESPACES: usize = 32;

/// What is known of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// It exists.
    Found(UnixSocket),
    /// No namespace that can be seen has a unix socket of this inode.
    Absent,
    /// This kernel does not tell (no `unix_diag`), or not now.
    Unavailable,
}

/// Looks at unix sockets in all network namespaces of the traced processes.
#[derive(Debug, Default)]
pub struct Sockets {
    /// By identity, as in `net:[4026531840]`; the namespace of this process first, once used.
    namespaces: Vec<(Vec<u8>, DiagSocket)>,
    /// Why `unix_diag` cannot be used.
    unavailable: Option<String>,
}

impl Sockets {
    /// Looks at nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the sockets of this process's network namespace visible, unless it has ended. Cheap if they are.
    pub fn include(&mut self, process: &Process) -> io::Result<()> {
        let identity = match process.namespace("net") {
            Err(error) if has_ended(&error) => return Ok(()),
            identity => identity?,
        };
        if self.namespaces.iter().any(|(known, _)| *known == identity) {
            return Ok(());
        }
        if self.namespaces.len() >= MAX_NAMESPACES {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let own = std::fs::read_link("/proc/thread-self/ns/net")?;
        let socket = if own.as_os_str().as_encoded_bytes() == identity {
            DiagSocket::open()
        } else {
            match process.open_namespace("net") {
                Err(error) if has_ended(&error) => return Ok(()),
                namespace => DiagSocket::open_in(&namespace?).or_else(|_| {
                    // That right was given up.
                    rights::diagnostics_in(process.id()).map(DiagSocket::from)
                }),
            }
        };
        match socket {
            Ok(socket) => self.namespaces.push((identity, socket)),
            Err(error) => {
                self.unavailable.get_or_insert_with(|| error.to_string());
                return Err(error);
            }
        }
        Ok(())
    }

    /// Looks at one socket: two system calls.
    pub fn look(&mut self, inode: SocketInode) -> Look {
        let Ok(number) = u32::try_from(inode.0) else {
            return Look::Absent;
        };
        let mut failed = self.namespaces.is_empty();
        for at in 0..self.namespaces.len() {
            match self.namespaces[at].1.look(number) {
                Ok(Some(socket)) => {
                    // Most sockets are where the last one was.
                    self.namespaces.swap(0, at);
                    return Look::Found(socket);
                }
                Ok(None) => {}
                Err(error) => {
                    failed = true;
                    self.unavailable.get_or_insert_with(|| error.to_string());
                }
            }
        }
        if failed {
            Look::Unavailable
        } else {
            Look::Absent
        }
    }

    /// Why `unix_diag` failed, if it ever did.
    pub fn unavailable(&self) -> Option<&str> {
        self.unavailable.as_deref()
    }
}

/// Whether an error of a look into `/proc` means that the process is gone.
fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_that_has_ended_says_nothing_about_the_kernel() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let mut sockets = Sockets::new();
        sockets.include(&process).unwrap();
        assert_eq!(sockets.unavailable(), None);
    }
}
