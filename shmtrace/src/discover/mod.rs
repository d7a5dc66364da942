//! Finding the transport from outside: which hub files there are, who is host, which process is which peer, and which
//! socket pair is whose doorbell.
//!
//! [`Discovery::refresh`] is called every 100 ms or so and costs next to nothing while nothing changes: processes are
//! examined when they are new, when a hint says that something happened to them, and every few seconds in case a hint
//! was lost. What it learns goes two ways: [`Changes::topology`] to the engine and [`ProbeUpdate`]s to the probes'
//! tables.

mod bind;
mod changes;
pub(crate) mod claim;
pub(crate) mod dismissed;
mod examining;
mod hub;
mod infer;
mod member;
mod pairs;
mod settling;
mod tables;

use std::collections::{BTreeMap, BTreeSet};

use shmtrace_engine::{
    HubId, Mono, ProcId, SocketInode,
    input::{Indexes, PeerBinding, Sample},
};

use crate::{
    bounds::{Bound, Reached},
    process::Process,
    sock::Sockets,
};

use dismissed::Dismissed;
use member::Member;
use pairs::Pairs;
use tables::Tables;

pub use changes::{Changes, Hint, Mapping, NO_PEER, ProbeUpdate, Side};
pub use hub::Hub;

/// Hubs that are followed at once.
pub const MAX_HUBS: usize = 16;
/// Sockets of one process that are remembered as used by it: a host uses one for each peer.
const MAX_USED: usize = 256;

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
    reached: Reached,
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
                    member.execed();
                }
            }
            Hint::Exited { pid } => self.remove(pid),
            Hint::Stirred { pid } => {
                if let Some(member) = self.members.get_mut(&pid) {
                    member.quiet_looks = 0;
                }
            }
            Hint::Lost => self
                .members
                .values_mut()
                .for_each(|member| (member.hinted, member.quiet_looks) = (true, 0)),
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
        if full {
            self.reached(Bound::Doorbells, &mut changes);
        }
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

    /// Whether the rings of doorbells without a peer should be compared more often than usual.
    pub(crate) fn is_matching(&self, now: Mono) -> bool {
        self.hubs.iter().any(|hub| hub.inference.is_lively(now))
    }

    /// A thread of `pid` sent on a socket that is no known peer's doorbell: one of which the probes know nothing, or one
    /// whose peer is looked for ([`ProbeUpdate::Doorbell`] with peer [`NO_PEER`]); `seen` are the rings that came with the
    /// record, to the peer and to the host. True if a refresh would tell more.
    pub fn rung(
        &mut self,
        socket: SocketInode,
        pid: u32,
        at: Mono,
        seen: [Option<Indexes>; 2],
    ) -> bool {
        for hub in &mut self.hubs {
            hub.inference.rung(socket, at, seen);
        }
        self.used(socket, pid)
    }

    /// A thread of `pid` took from such a socket. True if a refresh would tell more.
    pub fn took(&mut self, socket: SocketInode, pid: u32) -> bool {
        self.used(socket, pid)
    }

    fn used(&mut self, socket: SocketInode, pid: u32) -> bool {
        match self.pairs.kind(socket) {
            pairs::Kind::Foreign => false,
            // One's own end is the one that one uses.
            pairs::Kind::Pair(_) => {
                let Some(member) = self.members.get_mut(&pid) else {
                    return false;
                };
                let new = member.used.len() < MAX_USED && member.used.insert(socket);
                for hub in &mut self.hubs {
                    hub.unsettled |= new && hub.participants.contains(&pid);
                }
                new
            }
            // Made since the process was examined, and the other end may have gone to another one.
            pairs::Kind::Alone | pairs::Kind::Unknown => {
                let concerned = self.hubs.iter().flat_map(|hub| &hub.participants);
                let concerned: BTreeSet<u32> = concerned.copied().chain([pid]).collect();
                self.look_again(&concerned)
            }
        }
    }

    /// Examines these at the next refresh; false if that was to be done already.
    fn look_again(&mut self, pids: &BTreeSet<u32>) -> bool {
        let mut new = false;
        for pid in pids {
            if let Some(member) = self.members.get_mut(pid) {
                new |= !std::mem::replace(&mut member.hinted, true);
            }
        }
        new
    }

    /// A doorbell of this hub is missed: its processes are examined at the next refresh.
    pub(crate) fn missed_doorbell(&mut self, hub: HubId) {
        let Some(hub) = self.hub(hub) else { return };
        let pids = hub.participants.iter().copied().collect();
        self.look_again(&pids);
    }

    /// Compares the rings so far with the movement of the lanes. True if something was found, which a refresh brings in.
    pub fn infer(&mut self, now: Mono) -> bool {
        let mut found = false;
        for hub in &mut self.hubs {
            found |= hub.inference.is_wanted() && hub.infer(now);
        }
        found
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

    /// The sockets of each process that the refresh at `now` examined: pid, fd, inode.
    pub(crate) fn sockets_seen(&self, now: Mono) -> impl Iterator<Item = (u32, u32, SocketInode)> {
        let examined = self.members.iter();
        let examined = examined.filter(move |(_, member)| member.examined == Some(now));
        examined.flat_map(|(pid, member)| {
            let held = member.sockets.held.iter();
            held.map(|socket| (*pid, socket.fd, socket.inode))
        })
    }

    /// What sockets are asked through.
    pub(crate) fn sockets_mut(&mut self) -> &mut Sockets {
        &mut self.sockets
    }

    fn reached(&mut self, bound: Bound, changes: &mut Changes) {
        if self.reached.is_new(&bound) {
            changes.bounds.push(bound);
        }
    }

    fn note_if(&mut self, condition: bool, note: &str, changes: &mut Changes) {
        // Bounded, since a note may carry a path.
        if condition && self.noted.len() < 1024 && self.noted.insert(note.to_owned()) {
            changes.notes.push(note.to_owned());
        }
    }
}
