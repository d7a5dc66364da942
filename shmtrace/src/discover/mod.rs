//! Finding the transport from outside: which hub files there are, who is host, which process is which peer, and which
//! socket pair is whose doorbell.
//!
//! [`Discovery::refresh`] is called every 100 ms or so and costs next to nothing while nothing changes: processes are
//! examined when they are new, when a hint says that something happened to them, and every few seconds in case a hint
//! was lost. What it learns goes two ways: [`Topology`] to the engine and [`ProbeUpdate`]s to the probes' tables.

mod bind;
mod claim;
mod dismissed;
mod hub;
mod infer;
mod member;
mod pairs;
mod tables;

use std::collections::{BTreeMap, BTreeSet};

use shmtrace_engine::{
    HubId, Mono, PeerId, ProcId, SocketInode,
    input::{Indexes, PeerBinding, Sample, Topology},
};

use crate::{
    hub::{HubReader, looks_like_a_hub},
    process::{FileKey, MapEntry, Process},
    sock::Sockets,
};

use bind::{Facts, Participant, settle};
use dismissed::Dismissed;
use member::Member;
use pairs::Pairs;
use tables::Tables;

pub use hub::Hub;

/// Hubs that are followed at once.
pub const MAX_HUBS: usize = 16;
/// How often a process that maps a hub is examined without a hint (ns).
const PARTICIPANT_AGAIN: u64 = 2_000_000_000;
/// How often any other process is (ns).
const OTHER_AGAIN: u64 = 5_000_000_000;
/// Processes examined in one refresh; the rest follows in the next. One costs about 100 us.
const BUDGET: usize = 256;
/// How often a damaged hub is tried again (ns).
const REOPEN_AFTER: u64 = 1_000_000_000;

/// Something happened to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// It was started.
    Forked {
        /// Its pid.
        child: u32,
    },
    /// It executes another program.
    Execed {
        /// Its pid.
        pid: u32,
    },
    /// It made a shared mapping of a file.
    Mapped {
        /// Its pid.
        pid: u32,
    },
    /// It ended.
    Exited {
        /// Its pid.
        pid: u32,
    },
    /// Hints were lost: examine everything.
    Lost,
}

/// What is new.
#[derive(Debug, Default)]
pub struct Changes {
    /// For the engine.
    pub topology: Vec<Topology>,
    /// For the probes' tables.
    pub probes: Vec<ProbeUpdate>,
    /// For people: limits that were reached, hubs that were refused, blind spots. Each is said once.
    pub notes: Vec<String>,
    /// A hub was refused because this program does not speak its version.
    pub unsupported: bool,
}

/// A change of the probes' tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeUpdate {
    /// What is known of a process; replaces what was known before.
    Process {
        /// Its pid.
        pid: u32,
        /// It maps a hub.
        participant: bool,
        /// Where it maps hubs.
        mappings: Vec<Mapping>,
    },
    /// A socket is one end of a peer's doorbell. With peer [`NO_PEER`] it is some peer's of this hub, it is not known
    /// whose, and the rings are those of a candidate.
    Doorbell {
        /// The socket.
        socket: SocketInode,
        /// The hub.
        hub: HubId,
        /// The peer.
        peer: PeerId,
        /// Whose end it is.
        side: Side,
        /// File offset of the ring host -> peer.
        to_peer: u64,
        /// File offset of the ring peer -> host.
        to_host: u64,
    },
    /// A socket of a participant is no doorbell.
    Ignore {
        /// The socket.
        socket: SocketInode,
    },
    /// A socket is gone, or nothing is known of it any more.
    Forget {
        /// The socket.
        socket: SocketInode,
    },
}

/// The peer of a doorbell whose peer is not known.
pub const NO_PEER: PeerId = PeerId(shmtrace_common::NO_PEER);

/// Where a process maps a hub, from the file's begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// The hub.
    pub hub: HubId,
    /// Address of file offset 0.
    pub base: u64,
    /// Bytes.
    pub len: u64,
}

/// An end of a doorbell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The host's.
    Host,
    /// The plugin's.
    Plugin,
}

/// Everything that is known of the trees' processes and hubs.
#[derive(Debug, Default)]
pub struct Discovery {
    members: BTreeMap<u32, Member>,
    hubs: Vec<Hub>,
    hubs_made: u32,
    sockets: Sockets,
    pairs: Pairs,
    dismissed: Dismissed,
    tables: Tables,
    /// Something that the tables are made from changed.
    stale: bool,
    noted: BTreeSet<String>,
    buffer: Vec<u8>,
}

impl Discovery {
    /// Knows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes note of something that happened; the next refresh looks at it.
    pub fn hint(&mut self, hint: Hint) {
        match hint {
            Hint::Forked { .. } => {} // it is new at the next refresh
            Hint::Mapped { pid } => {
                if let Some(member) = self.members.get_mut(&pid) {
                    member.hinted = true;
                }
            }
            Hint::Execed { pid } => {
                if let Some(member) = self.members.get_mut(&pid) {
                    member.hinted = true;
                    member.is_copy = false;
                }
            }
            Hint::Exited { pid } => self.remove(pid),
            Hint::Lost => self
                .members
                .values_mut()
                .for_each(|member| member.hinted = true),
        }
    }

    /// Brings everything up to date. `live` are the pids of the trees.
    pub fn refresh(&mut self, now: Mono, live: &[u32]) -> Changes {
        let mut changes = Changes::default();
        self.follow(live, now);
        let examined = self.examine_due(now, &mut changes);
        self.keep_hubs(now, examined, &mut changes);
        self.settle_hubs(now, &mut changes);
        for hub in &mut self.hubs {
            self.stale |= hub.inference.is_wanted() && hub.inference.take_turns(now);
        }
        if !std::mem::take(&mut self.stale) {
            return changes;
        }
        let full = self
            .tables
            .update(&self.hubs, &self.members, &self.pairs, &mut changes.probes);
        self.note_if(
            full,
            "more sockets than the probes' table holds: some are not told apart",
            &mut changes,
        );
        changes
    }

    /// Adds a sample for each lane that changed since the last call or is not empty.
    pub fn samples(&mut self, now: Mono, out: &mut Vec<Sample>) {
        for hub in &mut self.hubs {
            hub.sample(now, out);
        }
    }

    /// All hubs.
    pub fn hubs(&self) -> impl Iterator<Item = &Hub> {
        self.hubs.iter()
    }

    /// One hub.
    pub fn hub(&self, id: HubId) -> Option<&Hub> {
        self.hubs.iter().find(|hub| hub.id == id)
    }

    /// All peers of all hubs.
    pub fn bindings(&self) -> impl Iterator<Item = &PeerBinding> {
        self.hubs.iter().flat_map(|hub| &hub.told)
    }

    /// The incarnation that had this pid at the last refresh.
    pub fn proc_id(&self, pid: u32) -> Option<ProcId> {
        self.members.get(&pid).map(|member| member.id)
    }

    /// The name of the process that had this pid at the last refresh.
    pub fn name(&self, pid: u32) -> Option<&str> {
        self.members.get(&pid).map(|member| member.name.as_str())
    }

    /// Whether some doorbell's peer is unknown, so that [`rung`](Self::rung) and [`infer`](Self::infer) would help.
    pub fn wants_rings(&self) -> bool {
        self.hubs.iter().any(|hub| hub.inference.is_wanted())
    }

    /// A thread of `pid` sent on a socket that is no known peer's doorbell: one of which the probes know nothing, or one
    /// whose peer is looked for ([`ProbeUpdate::Doorbell`] with peer [`NO_PEER`]); `seen` are the rings that came with the
    /// record, to the peer and to the host.
    pub fn rung(&mut self, socket: SocketInode, pid: u32, at: Mono, seen: Option<[Indexes; 2]>) {
        for hub in &mut self.hubs {
            hub.inference.rung(socket, at, seen);
        }
        // A doorbell made since the process was examined.
        if self.pairs.kind(socket) == pairs::Kind::Unknown
            && let Some(member) = self.members.get_mut(&pid)
        {
            member.hinted = true;
        }
    }

    /// Compares the rings so far with the movement of the lanes. What is found comes with the next refresh.
    pub fn infer(&mut self, _now: Mono) {
        for hub in &mut self.hubs {
            if hub.inference.is_wanted() {
                hub.infer();
            }
        }
    }

    /// An open handle of a process that maps a hub.
    pub(crate) fn process(&self, id: ProcId) -> Option<&Process> {
        self.members
            .get(&id.pid)
            .filter(|member| member.id == id)?
            .process
            .as_ref()
    }

    /// Where a process maps a hub: `(address, bytes, file offset)`.
    pub(crate) fn mappings(&self, pid: u32, hub: &Hub) -> Vec<(u64, u64, u64)> {
        let entries = self
            .members
            .get(&pid)
            .map_or(&[][..], |member| &member.mappings);
        entries
            .iter()
            .filter(|entry| entry.file == hub.file)
            .map(|entry| (entry.start, entry.size(), entry.offset))
            .collect()
    }

    /// The fd by which a process holds a socket.
    pub(crate) fn fd_of(&self, id: ProcId, socket: SocketInode) -> Option<u32> {
        let member = self.members.get(&id.pid).filter(|member| member.id == id)?;
        member
            .sockets
            .held
            .iter()
            .find(|held| held.inode == socket)
            .map(|held| held.fd)
    }

    /// What sockets are asked through.
    pub(crate) fn sockets_mut(&mut self) -> &mut Sockets {
        &mut self.sockets
    }

    /// Enters new processes, removes those that left.
    fn follow(&mut self, live: &[u32], now: Mono) {
        let live: BTreeSet<u32> = live.iter().copied().collect();
        let gone: Vec<u32> = self
            .members
            .keys()
            .filter(|pid| !live.contains(pid))
            .copied()
            .collect();
        for pid in gone {
            self.remove(pid);
        }
        for pid in live {
            if !self.members.contains_key(&pid)
                && let Ok(member) = Member::new(pid, now)
            {
                self.members.insert(pid, member);
            }
        }
    }

    fn remove(&mut self, pid: u32) {
        self.stale |= self.members.remove(&pid).is_some();
        for hub in &mut self.hubs {
            hub.unsettled |= hub.participants.contains(&pid);
        }
    }

    /// Examines the processes that are due; true if there was one.
    fn examine_due(&mut self, now: Mono, changes: &mut Changes) -> bool {
        let due: Vec<u32> = self
            .members
            .values()
            .filter(|member| {
                let again = if member.process.is_some() {
                    PARTICIPANT_AGAIN
                } else {
                    OTHER_AGAIN
                };
                member.hinted
                    || member.is_fresh_copy(now)
                    || member.examined.is_none_or(|at| now.since(at) >= again)
            })
            .map(|member| member.id.pid)
            .take(BUDGET)
            .collect();
        for pid in &due {
            if self.examine(*pid, now, changes).is_err() {
                self.remove(*pid);
            }
        }
        !due.is_empty()
    }

    fn examine(&mut self, pid: u32, now: Mono, changes: &mut Changes) -> std::io::Result<()> {
        self.stale = true;
        let Some(member) = self.members.get_mut(&pid) else {
            return Ok(());
        };
        let first = member.examined.is_none();
        member.examine_mappings(now, &mut self.buffer)?;
        let candidates: Vec<MapEntry> = member
            .mappings
            .iter()
            .filter(|entry| entry.offset == 0)
            .cloned()
            .collect();
        let mut again = false;
        for entry in candidates {
            again |= self.consider(pid, &entry, now, changes);
        }
        let hubs: Vec<FileKey> = self.hubs.iter().map(|hub| hub.file).collect();
        let Some(member) = self.members.get_mut(&pid) else {
            return Ok(());
        };
        let maps_hub = member.maps(|entry| hubs.contains(&entry.file));
        member.hinted = again;
        let name_before = member.name.clone();
        member.examine_rest(maps_hub, &mut self.buffer);
        if first && !maps_hub {
            return Ok(());
        }
        if (first || name_before != member.name) && maps_hub {
            changes.topology.push(Topology::Process {
                proc: member.id,
                name: member.name.clone(),
            });
        }
        let parent = member.parent;
        let words = self
            .members
            .get(&parent)
            .map(|parent| parent.words().to_vec());
        let Some(member) = self.members.get_mut(&pid) else {
            return Ok(());
        };
        member.compare_with(words.as_deref());
        if let Some(process) = &member.process
            && let Err(error) = self.sockets.include(process)
        {
            let note = format!("doorbell queues are read through copied fds: {error}");
            self.note_if(true, &note, changes);
        }
        for hub in &mut self.hubs {
            hub.unsettled |= hub.participants.contains(&pid) || maps_hub;
        }
        Ok(())
    }

    /// Looks whether a mapped file is a hub, and takes it in; true if it may become one a moment later.
    fn consider(&mut self, pid: u32, entry: &MapEntry, now: Mono, changes: &mut Changes) -> bool {
        let known = self.hubs.iter().any(|hub| hub.file == entry.file);
        if known || !self.dismissed.is_due(entry.file, now) {
            return false;
        }
        let Some(process) = self
            .members
            .get(&pid)
            .and_then(|member| member.process.as_ref())
        else {
            return false;
        };
        if self.dismissed.is_served_by_a_process(process, entry.file) {
            return false;
        }
        if !looks_like_a_hub(process, entry).is_ok_and(|is_hub| is_hub) {
            return self.dismissed.add(entry.file, now);
        }
        if self.hubs.len() >= MAX_HUBS {
            let note = format!("more than {MAX_HUBS} hubs: {} is not followed", entry.path);
            self.note_if(true, &note, changes);
            return false;
        }
        match HubReader::open_mapping(process, entry) {
            Ok(reader) => {
                self.dismissed.remove(entry.file);
                self.hubs_made += 1;
                let hub = Hub::new(HubId(self.hubs_made), entry.file, reader, now);
                changes.topology.push(Topology::Hub {
                    hub: hub.id,
                    path: entry.path.clone(),
                });
                self.hubs.push(hub);
                false
            }
            Err(error) => {
                let young = self.dismissed.add(entry.file, now) && error.problem.may_pass();
                changes.unsupported |=
                    matches!(error.problem, crate::hub::HubProblem::Version { .. });
                self.note_if(!young, &error.to_string(), changes);
                young
            }
        }
    }

    /// Drops hubs that nobody maps any more, and opens damaged ones anew.
    fn keep_hubs(&mut self, now: Mono, examined: bool, changes: &mut Changes) {
        for hub in &mut self.hubs {
            if hub.unsettled || examined {
                let mapping = |member: &&Member| member.maps(|entry| entry.file == hub.file);
                let participants: Vec<u32> = self
                    .members
                    .values()
                    .filter(mapping)
                    .map(|member| member.id.pid)
                    .collect();
                hub.unsettled |= participants != hub.participants;
                hub.participants = participants;
            }
            if now.since(hub.reopened) >= REOPEN_AFTER {
                hub.reopened = now;
                if !hub.reader.is_intact() {
                    reopen(hub, &self.members);
                }
            }
        }
        let (kept, gone) = std::mem::take(&mut self.hubs)
            .into_iter()
            .partition(|hub| !hub.participants.is_empty());
        self.hubs = kept;
        changes.topology.extend(
            gone.into_iter()
                .map(|hub: Hub| Topology::HubGone { hub: hub.id }),
        );
    }

    /// Draws the conclusions for hubs where something changed.
    fn settle_hubs(&mut self, now: Mono, changes: &mut Changes) {
        let mut looked_up = false;
        for at in 0..self.hubs.len() {
            let changed = self.hubs[at].read_entries();
            if !self.hubs[at].unsettled && !changed {
                continue;
            }
            if !looked_up {
                let held = self
                    .members
                    .values()
                    .flat_map(|member| member.sockets.held.iter().map(|held| held.inode));
                self.pairs.update(held, &mut self.sockets);
                looked_up = true;
            }
            self.settle_hub(at, now, changes);
        }
    }

    fn settle_hub(&mut self, at: usize, now: Mono, changes: &mut Changes) {
        self.stale = true;
        let hub = &self.hubs[at];
        let path = hub.reader.path();
        let participants: Vec<_> = hub
            .participants
            .iter()
            .filter_map(|pid| self.members.get(pid))
            .map(|member| participant(member, hub, now))
            .collect();
        let settled = settle(&Facts {
            path,
            entries: &hub.entries,
            participants: &participants,
            pairs: &self.pairs,
            before: &hub.settled,
            inferred: hub.inference.found(),
        });
        // A copy is looked at again until it has executed its program or is old.
        let wait = participants
            .iter()
            .any(|participant| participant.is_fresh_copy);
        let told = tables::peer_bindings(hub, &settled, &self.members);
        let hub = &mut self.hubs[at];
        for binding in &told {
            if !hub.told.contains(binding) {
                changes.topology.push(Topology::Peer(binding.clone()));
            }
        }
        hub.told = told;
        hub.inference.follow(&settled);
        hub.settled = settled;
        hub.unsettled = wait;
    }

    fn note_if(&mut self, condition: bool, note: &str, changes: &mut Changes) {
        // Bounded, since a note may carry a path.
        if condition && self.noted.len() < 1024 && self.noted.insert(note.to_owned()) {
            changes.notes.push(note.to_owned());
        }
    }
}

fn participant<'a>(member: &'a Member, hub: &Hub, now: Mono) -> Participant<'a> {
    let hubs_mapped: BTreeSet<FileKey> = member
        .mappings
        .iter()
        .filter(|entry| entry.offset == 0)
        .map(|entry| entry.file)
        .collect();
    // A path decides only between several; a hub that was renamed or deleted is still the one that is mapped.
    let named = member
        .claim
        .hub_path
        .as_deref()
        .is_none_or(|path| same_name(path, hub.reader.path()));
    Participant {
        id: member.id,
        parent: member.parent,
        claim: &member.claim,
        claims_this_hub: member.claim.peer.is_some() && (named || hubs_mapped.len() == 1),
        sockets: &member.sockets,
        pids: &member.pids,
        is_fresh_copy: member.is_fresh_copy(now),
    }
}

/// Paths of one file may differ in their folders (mount namespaces, links), not in the name.
fn same_name(one: &str, other: &str) -> bool {
    one.rsplit('/').next() == other.rsplit('/').next()
}

fn reopen(hub: &mut Hub, members: &BTreeMap<u32, Member>) {
    for member in hub.participants.iter().filter_map(|pid| members.get(pid)) {
        let entry = member
            .mappings
            .iter()
            .find(|entry| entry.file == hub.file && entry.offset == 0);
        if let (Some(process), Some(entry)) = (&member.process, entry)
            && let Ok(reader) = HubReader::open_mapping(process, entry)
            && reader.is_intact()
        {
            hub.reader = reader;
            hub.unsettled = true;
            return;
        }
    }
}
