//! Keeping the hubs up to date: who maps them, whether they can still be read, and who is who in them.

use std::collections::{BTreeMap, BTreeSet};

use shmtrace_engine::{Mono, input::Topology};

use super::{
    Changes, Discovery, Hub,
    bind::{Facts, Participant, settle},
    member::Member,
    tables,
};
use crate::{hub::HubReader, process::FileKey};

/// How often a damaged hub is tried again (ns).
const REOPEN_AFTER: u64 = 1_000_000_000;
/// Generations above a process that are looked at.
const MAX_DEPTH: usize = 16;

impl Discovery {
    /// Drops hubs that nobody maps any more, and opens damaged ones anew.
    pub(super) fn keep_hubs(&mut self, now: Mono, examined: bool, changes: &mut Changes) {
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
    pub(super) fn settle_hubs(&mut self, now: Mono, changes: &mut Changes) {
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
        let hubs: Vec<FileKey> = self.hubs.iter().map(|hub| hub.file).collect();
        let path = hub.reader.path();
        let participants: Vec<_> = hub
            .participants
            .iter()
            .filter_map(|pid| self.members.get(pid))
            .map(|member| participant(member, hub, &hubs, &self.members, now))
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
}

fn participant<'a>(
    member: &'a Member,
    hub: &Hub,
    hubs: &[FileKey],
    members: &BTreeMap<u32, Member>,
    now: Mono,
) -> Participant<'a> {
    let hubs_mapped: BTreeSet<FileKey> = member
        .mappings
        .iter()
        .map(|entry| entry.file)
        .filter(|file| hubs.contains(file))
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
        ancestors: ancestors(member, members),
        claim: &member.claim,
        claims_this_hub: member.claim.peer.is_some() && (named || hubs_mapped.len() == 1),
        sockets: &member.sockets,
        used: &member.used,
        pids: &member.pids,
        is_fresh_copy: member.is_fresh_copy(now),
    }
}

/// Its parent, its parent's parent and so on, within the trees.
fn ancestors(member: &Member, members: &BTreeMap<u32, Member>) -> Vec<u32> {
    let above = |pid: &u32| members.get(pid).map(|member| member.parent);
    std::iter::successors(Some(member.parent), above)
        .take(MAX_DEPTH)
        .collect()
}

/// Paths of one file may differ in their folders (mount namespaces, links), not in the name.
fn same_name(one: &str, other: &str) -> bool {
    one.rsplit('/').next() == other.rsplit('/').next()
}

fn reopen(hub: &mut Hub, members: &BTreeMap<u32, Member>) {
    for member in hub.participants.iter().filter_map(|pid| members.get(pid)) {
        let entry = member.mappings.iter().find(|entry| entry.file == hub.file);
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
