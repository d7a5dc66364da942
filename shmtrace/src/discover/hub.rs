//! One hub that processes of the tree map.

use shmtrace_engine::{
    Direction, HubId, LaneId, Mono, PeerId, ProcId, SocketInode,
    input::{Indexes, PeerBinding, Sample},
};

use super::{
    bind::{Binding, Settled},
    infer::Inference,
};
use crate::{
    hub::{HubReader, PeerEntry},
    process::FileKey,
};

const DIRECTIONS: [Direction; 2] = [Direction::ToPeer, Direction::ToHost];

/// A hub with everything that is known of it.
#[derive(Debug)]
pub struct Hub {
    pub(super) id: HubId,
    pub(super) file: FileKey,
    pub(super) reader: HubReader,
    /// Pids of the processes that map it.
    pub(super) participants: Vec<u32>,
    /// Entries of the peer table that are used, as last read.
    pub(super) entries: Vec<PeerEntry>,
    pub(super) settled: Settled,
    pub(super) inference: Inference,
    /// What the engine was told of each peer.
    pub(super) told: Vec<PeerBinding>,
    /// Participants or their sockets changed since `settled`.
    pub(super) unsettled: bool,
    /// When it was last tried to open the file anew after it had been damaged.
    pub(super) reopened: Mono,
    /// Indexes that were reported last, two lanes per peer.
    sampled: Vec<[Option<Indexes>; 2]>,
}

impl Hub {
    pub(super) fn new(id: HubId, file: FileKey, reader: HubReader, now: Mono) -> Self {
        let peers = usize::from(reader.geometry().max_peers);
        Self {
            id,
            file,
            reader,
            participants: Vec::new(),
            entries: Vec::new(),
            settled: Settled::default(),
            inference: Inference::default(),
            told: Vec::new(),
            unsettled: true,
            reopened: now,
            sampled: vec![[None; 2]; peers],
        }
    }

    /// Its id, the same for as long as the file is mapped.
    pub fn id(&self) -> HubId {
        self.id
    }

    /// Where the file is (or was).
    pub fn path(&self) -> &str {
        self.reader.path()
    }

    /// Inode number of the file.
    pub fn inode(&self) -> u64 {
        self.file.inode
    }

    /// The file.
    pub fn reader(&self) -> &HubReader {
        &self.reader
    }

    /// Entries of the peer table that are used, as last read.
    pub fn entries(&self) -> &[PeerEntry] {
        &self.entries
    }

    /// The host's process.
    pub fn host(&self) -> Option<ProcId> {
        self.settled.host
    }

    /// Pids of the processes that map it.
    pub fn participants(&self) -> &[u32] {
        &self.participants
    }

    /// What is known of its peers.
    pub fn bindings(&self) -> &[PeerBinding] {
        &self.told
    }

    /// What is known of one peer.
    pub fn binding(&self, peer: PeerId) -> Option<&PeerBinding> {
        self.told.iter().find(|binding| binding.peer == peer)
    }

    /// Processes of which one is the plugin of any peer that has none; empty unless all that it could be are there.
    pub fn candidates(&self) -> &[ProcId] {
        let Settled {
            candidates,
            open_peers,
            more_may_come,
            ..
        } = &self.settled;
        if *more_may_come || candidates.len() < open_peers.len() {
            &[]
        } else {
            candidates
        }
    }

    /// Ends of which one belongs to any peer whose doorbell is not known: the host's and the plugins'. Empty unless all
    /// that it could be are there.
    pub(crate) fn loose_ends(&self) -> (Vec<SocketInode>, Vec<SocketInode>) {
        let loose = &self.settled.loose;
        if loose.len() < self.candidates().len().max(1) {
            return (Vec::new(), Vec::new());
        }
        loose
            .iter()
            .map(|loose| (loose.host_end, loose.plugin_end))
            .unzip()
    }

    /// The peer's processes and ends.
    pub(crate) fn parts(&self, peer: PeerId) -> Option<Binding> {
        self.settled.bindings.get(&peer).copied()
    }

    /// Reads the used entries of the peer table; true if one of them is new or has other flags.
    pub(super) fn read_entries(&mut self) -> bool {
        let glance = self.reader.glance();
        let entries: Vec<_> = self
            .reader
            .peers()
            .filter_map(|id| glance.peer_entry(id))
            .filter(PeerEntry::is_used)
            .collect();
        drop(glance);
        let key = |entries: &[PeerEntry]| -> Vec<_> {
            entries
                .iter()
                .map(|entry| (entry.id, entry.flags))
                .collect()
        };
        let changed = key(&entries) != key(&self.entries);
        self.entries = entries;
        changed
    }

    /// Adds the lanes that changed since they were last added, and those that are not empty.
    pub(super) fn sample(&mut self, now: Mono, out: &mut Vec<Sample>) {
        let glance = self.reader.glance();
        let capacity = self.reader.geometry().ring_capacity;
        for entry in &self.entries {
            let Some(sampled) = self.sampled.get_mut(usize::from(entry.id.0)) else {
                continue;
            };
            for (direction, sampled) in DIRECTIONS.into_iter().zip(sampled) {
                // A pair that changed while it was read comes again at the next look.
                let Some(ring) = glance.ring(entry.id, direction).filter(|ring| ring.stable) else {
                    continue;
                };
                if *sampled != Some(ring.indexes) || ring.indexes.head != ring.indexes.tail {
                    *sampled = Some(ring.indexes);
                    let lane = LaneId {
                        hub: self.id,
                        peer: entry.id,
                        direction,
                    };
                    out.push(Sample {
                        at: now,
                        lane,
                        ring: ring.indexes,
                        capacity,
                    });
                }
            }
        }
    }

    /// Compares the rings of doorbells without a peer with the movement of lanes without a doorbell.
    pub(super) fn infer(&mut self, now: Mono) -> bool {
        let glance = self.reader.glance();
        let found = self.inference.compare(now, |peer, direction| {
            glance.ring(peer, direction).map(|ring| ring.indexes.head)
        });
        self.unsettled |= found;
        found
    }
}
