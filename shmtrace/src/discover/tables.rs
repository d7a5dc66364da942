//! What the engine and the probes are told: differences between what is known and what they know.

use std::collections::BTreeMap;

use shmtrace_common::MAX_DOORBELLS;
use shmtrace_engine::{Direction, SocketInode, input::PeerBinding};

use super::{
    Hub, Mapping, NO_PEER, ProbeUpdate, Side,
    bind::Settled,
    member::Member,
    pairs::{Kind, Pairs},
};
use crate::process::MapEntry;

/// What the probes' tables say by now.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    processes: BTreeMap<u32, (u64, Vec<Mapping>)>,
    sockets: BTreeMap<SocketInode, ProbeUpdate>,
}

impl Tables {
    /// Adds the updates that make the probes' tables say what is known. True if the table cannot hold all doorbells.
    pub(crate) fn update(
        &mut self,
        hubs: &[Hub],
        members: &BTreeMap<u32, Member>,
        pairs: &Pairs,
        updates: &mut Vec<ProbeUpdate>,
    ) -> bool {
        self.update_processes(hubs, members, updates);
        let (wanted, full) = wanted_sockets(hubs, members, pairs);
        // Forget first: the table may be full.
        for socket in self
            .sockets
            .keys()
            .filter(|socket| !wanted.contains_key(socket))
        {
            updates.push(ProbeUpdate::Forget { socket: *socket });
        }
        for (socket, update) in &wanted {
            if self.sockets.get(socket) != Some(update) {
                updates.push(update.clone());
            }
        }
        self.sockets = wanted;
        full
    }

    fn update_processes(
        &mut self,
        hubs: &[Hub],
        members: &BTreeMap<u32, Member>,
        updates: &mut Vec<ProbeUpdate>,
    ) {
        let mut known = BTreeMap::new();
        for member in members.values() {
            let mappings = mappings_of(member, hubs);
            let participant = hubs
                .iter()
                .any(|hub| hub.participants.contains(&member.id.pid));
            // The start time tells a reused pid, whose entry in the probes' table is a new one.
            let before = self
                .processes
                .get(&member.id.pid)
                .filter(|(start, _)| *start == member.id.start);
            let told = before.map_or(&[][..], |(_, mappings)| mappings);
            if participant && before.is_none() || told != mappings {
                let update = ProbeUpdate::Process {
                    pid: member.id.pid,
                    participant,
                    mappings: mappings.clone(),
                };
                updates.push(update);
            }
            if participant || !mappings.is_empty() {
                known.insert(member.id.pid, (member.id.start, mappings));
            }
        }
        self.processes = known;
    }
}

/// Where a process maps the rings of hubs.
fn mappings_of(member: &Member, hubs: &[Hub]) -> Vec<Mapping> {
    hubs.iter()
        .filter_map(|hub| {
            let pieces = member.mappings.iter();
            mapping_of(hub, pieces.filter(|entry| entry.file == hub.file))
        })
        .collect()
}

/// Of the pieces in which a process maps a hub, adjacent ones joined, the one that has the most of its rings.
fn mapping_of<'a>(hub: &Hub, pieces: impl Iterator<Item = &'a MapEntry>) -> Option<Mapping> {
    let mut joined: Vec<(u64, u64, u64)> = Vec::new();
    for piece in pieces {
        match joined.last_mut() {
            Some((start, size, offset))
                if *start + *size == piece.start && *offset + *size == piece.offset =>
            {
                *size += piece.size();
            }
            _ => joined.push((piece.start, piece.size(), piece.offset)),
        }
    }
    let geometry = hub.reader.geometry();
    let rings = |(_, size, offset): &(u64, u64, u64)| {
        let end = (offset + size).min(geometry.size_classes);
        end.saturating_sub((*offset).max(geometry.ring_region))
    };
    let (start, size, offset) = joined
        .into_iter()
        .rev()
        .filter(|piece| rings(piece) > 0)
        .max_by_key(rings)?;
    Some(Mapping {
        hub: hub.id,
        base: start.checked_sub(offset)?,
        len: offset + size,
    })
}

/// What the probes should know of sockets: doorbells first, then what is certainly none.
fn wanted_sockets(
    hubs: &[Hub],
    members: &BTreeMap<u32, Member>,
    pairs: &Pairs,
) -> (BTreeMap<SocketInode, ProbeUpdate>, bool) {
    let limit = MAX_DOORBELLS as usize;
    let mut wanted = BTreeMap::new();
    for hub in hubs {
        for binding in &hub.told {
            for (end, side) in [
                (binding.host_end, Side::Host),
                (binding.plugin_end, Side::Plugin),
            ] {
                let (Some(socket), Some(to_peer), Some(to_host)) = (
                    end,
                    hub.reader.ring_offset(binding.peer, Direction::ToPeer),
                    hub.reader.ring_offset(binding.peer, Direction::ToHost),
                ) else {
                    continue;
                };
                let peer = binding.peer;
                wanted.insert(
                    socket,
                    ProbeUpdate::Doorbell {
                        socket,
                        hub: hub.id,
                        peer,
                        side,
                        to_peer,
                        to_host,
                    },
                );
            }
        }
    }
    for hub in hubs {
        for trial in hub.inference.trials() {
            let (Some(to_peer), Some(to_host)) = (
                hub.reader.ring_offset(trial.candidate, Direction::ToPeer),
                hub.reader.ring_offset(trial.candidate, Direction::ToHost),
            ) else {
                continue;
            };
            let (socket, side) = (trial.socket, trial.side);
            wanted.entry(socket).or_insert(ProbeUpdate::Doorbell {
                socket,
                hub: hub.id,
                peer: NO_PEER,
                side,
                to_peer,
                to_host,
            });
        }
    }
    let full = wanted.len() > limit;
    for held in members.values().flat_map(|member| &member.sockets.held) {
        if pairs.kind(held.inode) == Kind::Foreign && !wanted.contains_key(&held.inode) {
            // Half of the table is for doorbells. The rest of these is not hidden: each record of them costs some time.
            if wanted.len() >= limit / 2 {
                break;
            }
            wanted.insert(held.inode, ProbeUpdate::Ignore { socket: held.inode });
        }
    }
    (wanted, full)
}

/// The engine's view of a hub's peers.
pub(crate) fn peer_bindings(
    hub: &Hub,
    settled: &Settled,
    members: &BTreeMap<u32, Member>,
) -> Vec<PeerBinding> {
    hub.entries
        .iter()
        .filter_map(|entry| {
            let binding = settled.bindings.get(&entry.id)?;
            let name = binding.plugin.and_then(|plugin| {
                let member = members
                    .get(&plugin.pid)
                    .filter(|member| member.id == plugin);
                let before = || {
                    hub.binding(entry.id)
                        .filter(|told| told.plugin == Some(plugin))
                };
                member
                    .map(|member| member.name.clone())
                    .or_else(|| Some(before()?.name.clone()))
            });
            Some(PeerBinding {
                hub: hub.id,
                peer: entry.id,
                name: name.unwrap_or_else(|| format!("peer {}", entry.id.0)),
                plugin: binding.plugin,
                host: settled.host,
                host_end: binding.host_end,
                plugin_end: binding.plugin_end,
                flags: entry.flags,
                certain: binding.plugin.is_some()
                    && settled.host.is_some()
                    && binding.host_end.is_some()
                    && binding.plugin_end.is_some(),
            })
        })
        .collect()
}
