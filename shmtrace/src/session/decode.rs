//! From records of the probes to events of the engine.

#[cfg(target_arch = "aarch64")]
use shmtrace_common::syscalls::aarch64 as nr;
#[cfg(not(target_arch = "aarch64"))]
use shmtrace_common::syscalls::x86_64 as nr;
use shmtrace_common::{
    FLAG_PROCESS, FLAG_TO_HOST, FLAG_TO_PEER, Kind, NO_PEER, NO_SYSCALL, Record,
};
use shmtrace_engine::{
    HubId, Mono, PeerId, ProcId, SocketInode, Tid,
    input::{Event, EventKind, Indexes, PeerRings},
};

use super::tree::Tree;

/// The event that a record stands for; `None` for records that concern the daemon only.
pub(crate) fn event(record: &Record, tree: &mut Tree) -> Option<Event> {
    let rings = rings(record);
    let syscall = (record.syscall != NO_SYSCALL).then_some(record.syscall);
    let result = record.result;
    let kind = match Kind::from_u8(record.kind)? {
        Kind::Ring => EventKind::Ring {
            end: end(record, tree)?,
            syscall,
            result,
            rings,
        },
        Kind::Take => EventKind::Take {
            end: end(record, tree)?,
            syscall,
            result,
            rings,
        },
        Kind::Sleep => EventKind::Sleep {
            syscall,
            arg: record.arg,
            for_fds: nr::waits_for_fds(record.syscall),
            rings,
        },
        Kind::Wake => EventKind::Wake {
            syscall: record.syscall,
            result,
        },
        Kind::FutexWake => EventKind::FutexWake {
            hub: HubId(record.hub),
            offset: record.arg,
            woken: u32::try_from(result).unwrap_or(0),
        },
        Kind::Fork => EventKind::Fork {
            child: u32::try_from(record.arg).ok()?,
        },
        Kind::Exec => EventKind::Exec,
        Kind::Exit => EventKind::Exit {
            process: record.flags & FLAG_PROCESS != 0,
        },
        Kind::Map => return None,
    };
    let proc = tree.member(record.pid).map_or(
        ProcId {
            pid: record.pid,
            start: 0,
        },
        |member| {
            member.stirred = true;
            member.id
        },
    );
    Some(Event {
        at: Mono(record.at),
        cpu: record.cpu,
        proc,
        tid: Tid(record.tid),
        kind,
    })
}

/// The socket of a doorbell record. A send that failed on an fd which names no doorbell (any more) is ascribed to the one
/// that it was.
fn end(record: &Record, tree: &mut Tree) -> Option<SocketInode> {
    let failed = record.result < 0 && record.hub == 0;
    // Nearly all: the socket is known and its fd is not, so there is nothing to remember.
    if record.arg != 0 && !failed && record.fd < 0 {
        return Some(SocketInode(record.arg));
    }
    let member = tree.member(record.pid);
    let was = member
        .as_ref()
        .and_then(|member| member.socket_of(record.fd));
    if record.arg == 0 || failed {
        return was
            .or((record.arg != 0).then_some(record.arg))
            .map(SocketInode);
    }
    if let Some(member) = member
        && record.fd >= 0
        && was != Some(record.arg)
    {
        member.saw_fd(record.fd, record.arg);
    }
    Some(SocketInode(record.arg))
}

fn rings(record: &Record) -> Option<PeerRings> {
    let [to_peer, to_host] = indexes(record);
    if record.peer == NO_PEER || to_peer.is_none() && to_host.is_none() {
        return None;
    }
    Some(PeerRings {
        hub: HubId(record.hub),
        peer: PeerId(record.peer),
        to_peer,
        to_host,
    })
}

/// The rings that came with a record, to the peer and to the host.
pub(crate) fn indexes(record: &Record) -> [Option<Indexes>; 2] {
    let [to_peer_head, to_peer_tail, to_host_head, to_host_tail] = record.rings;
    let read = |flag, head, tail| (record.flags & flag != 0).then_some(Indexes { head, tail });
    [
        read(FLAG_TO_PEER, to_peer_head, to_peer_tail),
        read(FLAG_TO_HOST, to_host_head, to_host_tail),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: Kind) -> Record {
        Record {
            at: 7,
            pid: 1,
            tid: 2,
            kind: kind as u8,
            flags: 0,
            cpu: 3,
            syscall: 44,
            peer: 2,
            result: 1,
            hub: 0,
            arg: 99,
            fd: 5,
            mark: 0,
            rings: [4, 3, 2, 1],
        }
    }

    #[test]
    fn a_ring_record_becomes_a_ring_event_with_its_lanes_the_right_way_round() {
        let mut sent = record(Kind::Ring);
        sent.flags = FLAG_TO_PEER | FLAG_TO_HOST;
        let event = event(&sent, &mut Tree::default()).unwrap();
        let EventKind::Ring {
            end,
            rings: Some(rings),
            ..
        } = event.kind
        else {
            panic!("{event:?}")
        };
        assert_eq!(end, SocketInode(99));
        assert_eq!(rings.to_peer, Some(Indexes { head: 4, tail: 3 }));
        assert_eq!(rings.to_host, Some(Indexes { head: 2, tail: 1 }));
    }

    #[test]
    fn the_rings_of_a_candidate_are_no_evidence_for_the_engine() {
        let mut sent = record(Kind::Ring);
        (sent.flags, sent.peer) = (FLAG_TO_PEER | FLAG_TO_HOST, NO_PEER);
        let event = event(&sent, &mut Tree::default()).unwrap();
        assert!(
            matches!(event.kind, EventKind::Ring { rings: None, .. }),
            "{event:?}"
        );
        assert_eq!(indexes(&sent)[0], Some(Indexes { head: 4, tail: 3 }));
    }

    #[test]
    fn indexes_that_could_not_be_read_are_not_made_up() {
        let event = event(&record(Kind::Take), &mut Tree::default()).unwrap();
        assert!(
            matches!(event.kind, EventKind::Take { rings: None, .. }),
            "{event:?}"
        );
    }

    #[test]
    fn a_failed_send_on_an_unknown_fd_names_no_doorbell() {
        let mut sent = record(Kind::Ring);
        sent.arg = 0;
        sent.result = -9;
        assert_eq!(event(&sent, &mut Tree::default()), None);
    }
}
