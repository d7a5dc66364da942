//! What the probes' buffers hold, from the mapping to the report.

use std::{fs::File, os::unix::fs::FileExt as _};

use rustix::fs::{MemfdFlags, memfd_create};
use shmtrace_common::{Cursor, Kind, NO_PEER, Record};
use shmtrace_engine::{
    HubId, Mono, Output, PeerId, ProcId, SocketInode,
    input::{Input, Loss, PeerBinding, Topology},
};

use super::{Discovery, Judge, Report as _, Step, Tree, decode};
use crate::{
    fuzzing::{Sink, options},
    probes::Rings,
};

const CPUS: u32 = 2;
const ROOM: u32 = 64;
const RECORD: usize = size_of::<Record>();

/// Both sides of the buffers.
struct Buffers {
    cursors: File,
    records: File,
    heads: [u64; CPUS as usize],
    rings: Rings,
}

impl Buffers {
    fn new() -> Option<Self> {
        let file = |bytes: usize| -> Option<File> {
            let file = File::from(memfd_create("records", MemfdFlags::CLOEXEC).ok()?);
            file.set_len(bytes as u64).ok()?;
            Some(file)
        };
        let cursors = file(CPUS as usize * size_of::<Cursor>())?;
        let records = file((CPUS * ROOM) as usize * RECORD)?;
        let rings = Rings::map(&cursors, &records, CPUS, ROOM).ok()?;
        Some(Self {
            cursors,
            records,
            heads: [0; 2],
            rings,
        })
    }

    /// Puts a record where the next one belongs, with the mark that it should have or its own.
    fn put(&mut self, cpu: usize, bytes: &[u8], honest: bool) {
        let head = self.heads[cpu];
        let place = cpu as u64 * u64::from(ROOM) + head % u64::from(ROOM);
        let at = place * RECORD as u64;
        let mark = (
            at + std::mem::offset_of!(Record, mark) as u64,
            Record::mark(head),
        );
        let _written = self.records.write_all_at(bytes, at);
        if honest {
            let _written = self.records.write_all_at(&mark.1.to_ne_bytes(), mark.0);
        }
        self.move_head(cpu, head.wrapping_add(1));
    }

    fn move_head(&mut self, cpu: usize, head: u64) {
        self.heads[cpu] = head;
        let at = cpu * size_of::<Cursor>() + std::mem::offset_of!(Cursor, head);
        let _written = self.cursors.write_all_at(&head.to_ne_bytes(), at as u64);
    }
}

/// The bytes are records, each after a byte that says what to do with it.
pub fn records(data: &[u8]) {
    let options = options();
    let Some(mut buffers) = Buffers::new() else {
        return;
    };
    let mut sink = Sink::new(options.clock);
    let mut judge = Judge::replaying(&options);
    let mut tree = Tree::default();
    let mut discovery = Discovery::new();
    let _ok = judge.step(Step::Attached(Mono(0)));
    for topology in topology() {
        let _ok = judge.tell(Input::Topology(topology));
    }
    let mut taken = Vec::new();
    let mut now = Mono(0);
    for chunk in data.chunks_exact(1 + RECORD) {
        let (op, record) = (chunk[0], &chunk[1..]);
        let cpu = usize::from(op & 1);
        match op >> 1 & 7 {
            // Anything may stand in the cursor.
            0 => buffers.move_head(cpu, u64_at(record)),
            1 => buffers.put(cpu, record, false),
            _ => buffers.put(cpu, record, true),
        }
        // Several records at a time, mostly.
        if op & 0x10 == 0 {
            continue;
        }
        taken.clear();
        let drained = buffers
            .rings
            .drain(usize::MAX, |record| taken.push(*record));
        assert!(taken.len() <= (CPUS * ROOM) as usize);
        if drained.foreign > 0 {
            let loss = Loss {
                from: Mono(0),
                to: now,
                records: drained.foreign,
            };
            let _ok = judge.tell(Input::Loss(loss));
        }
        for record in &taken {
            now = now.max(Mono(record.at));
            let Some(event) = take(record, &mut tree, &mut discovery) else {
                continue;
            };
            let _ok = sink.event(&event, &judge.names);
            let _ok = judge.tell_event(&event);
        }
        let advance = Step::Advance {
            now,
            complete_until: now,
        };
        let _ok = judge.step(advance);
        while let Some(output) = judge.next() {
            if let Output::Finding(finding) = output {
                let _ok = sink.finding(&finding, &judge.names);
            }
        }
    }
    sink.check();
}

/// What the session does with a record, but for looking at real processes.
fn take(
    record: &Record,
    tree: &mut Tree,
    discovery: &mut Discovery,
) -> Option<shmtrace_engine::input::Event> {
    let socket = SocketInode(record.arg);
    let unknown = record.peer == NO_PEER && record.arg != 0;
    match Kind::from_u8(record.kind)? {
        Kind::Ring if unknown => {
            let rings = decode::indexes(record);
            discovery.rung(socket, record.pid, Mono(record.at), rings);
        }
        Kind::Take if unknown => {
            discovery.took(socket, record.pid);
        }
        _ => {}
    }
    decode::event(record, tree)
}

/// A hub with one peer, so that records can concern somebody: processes 1 and 2, sockets 8 and 9.
fn topology() -> Vec<Topology> {
    let proc = |pid| ProcId { pid, start: 0 };
    vec![
        Topology::Hub {
            hub: HubId(1),
            path: "/tmp/dodeca-hub-1.shm".into(),
        },
        Topology::Process {
            proc: proc(1),
            name: "ddc".into(),
        },
        Topology::Process {
            proc: proc(2),
            name: "dodeca-mod-css".into(),
        },
        Topology::Peer(PeerBinding {
            hub: HubId(1),
            peer: PeerId(0),
            name: "dodeca-mod-css".into(),
            plugin: Some(proc(2)),
            host: Some(proc(1)),
            host_end: Some(SocketInode(8)),
            plugin_end: Some(SocketInode(9)),
            flags: 1,
            certain: true,
        }),
    ]
}

fn u64_at(bytes: &[u8]) -> u64 {
    bytes
        .first_chunk()
        .map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}
