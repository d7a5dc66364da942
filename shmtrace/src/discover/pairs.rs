//! Which sockets are pairs that keep datagrams apart: what `unix_diag` said once stays true for a pair's life.

use std::collections::BTreeMap;

use shmtrace_engine::SocketInode;

use crate::sock::{DATAGRAM, Look, SEQUENCED, Sockets};

/// What a socket is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One end of a connected pair of datagram or sequenced-packet sockets.
    Pair(SocketInode),
    /// Such a socket whose other end is gone, or that is not connected yet.
    Alone,
    /// Anything else.
    Foreign,
    /// Could not be told.
    Unknown,
}

/// What is known of the sockets that processes hold.
#[derive(Debug, Default)]
pub(crate) struct Pairs {
    known: BTreeMap<SocketInode, Kind>,
}

impl Pairs {
    /// Looks up those that are new; forgets those that nobody holds any more.
    pub(crate) fn update(
        &mut self,
        held: impl Iterator<Item = SocketInode>,
        sockets: &mut Sockets,
    ) {
        let mut known = BTreeMap::new();
        for inode in held {
            known
                .entry(inode)
                .or_insert_with(|| match self.known.get(&inode) {
                    None | Some(Kind::Unknown | Kind::Alone) => look(inode, sockets),
                    Some(kind) => *kind,
                });
        }
        self.known = known;
    }

    /// What a socket is.
    pub(crate) fn kind(&self, inode: SocketInode) -> Kind {
        self.known.get(&inode).copied().unwrap_or(Kind::Unknown)
    }

    /// The other end, if it is one end of a pair.
    pub(crate) fn other_end(&self, inode: SocketInode) -> Option<SocketInode> {
        match self.kind(inode) {
            Kind::Pair(other) => Some(other),
            Kind::Alone | Kind::Foreign | Kind::Unknown => None,
        }
    }

    /// For tests: a pair that is just there.
    #[cfg(test)]
    pub(crate) fn insert_pair(&mut self, one: u64, other: u64) {
        self.known
            .insert(SocketInode(one), Kind::Pair(SocketInode(other)));
        self.known
            .insert(SocketInode(other), Kind::Pair(SocketInode(one)));
    }
}

fn look(inode: SocketInode, sockets: &mut Sockets) -> Kind {
    match sockets.look(inode) {
        Look::Found(socket) if matches!(socket.kind, DATAGRAM | SEQUENCED) => match socket.peer {
            Some(peer) => Kind::Pair(SocketInode(peer.into())),
            None => Kind::Alone,
        },
        Look::Found(_) | Look::Absent => Kind::Foreign,
        Look::Unavailable => Kind::Unknown,
    }
}
