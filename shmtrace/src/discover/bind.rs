//! Who is who in one hub, from what is known: a pure function, so that every constellation can be tested.
//!
//! The evidence, strongest first: the plugin's command line, checked against its sockets; the two ends of a datagram
//! pair held by two processes that map the same hub; parenthood and the pid in the hub's file name for the host; what was
//! seen before; whose ring moves when which doorbell is rung (`infer`); and being the only one left.

use std::collections::{BTreeMap, BTreeSet};

use shmtrace_engine::{PeerId, ProcId, SocketInode};

use super::{
    claim::Claim,
    pairs::{Kind, Pairs},
};
use crate::{hub::PeerEntry, process::Sockets};

/// A process that maps the hub.
#[derive(Debug, Clone)]
pub(crate) struct Participant<'a> {
    pub(crate) id: ProcId,
    pub(crate) parent: u32,
    /// Its parent and those above.
    pub(crate) ancestors: Vec<u32>,
    pub(crate) claim: &'a Claim,
    /// The hub that `claim` names is this one.
    pub(crate) claims_this_hub: bool,
    pub(crate) sockets: &'a Sockets,
    /// Of these, those that it was seen to use.
    pub(crate) used: &'a BTreeSet<SocketInode>,
    /// Its pids in all pid namespaces that it is in.
    pub(crate) pids: &'a [u32],
    /// A copy of its parent that has not executed its own program yet.
    pub(crate) is_fresh_copy: bool,
}

/// Everything that is known.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    /// The hub file's path.
    pub(crate) path: &'a str,
    /// Entries of the peer table that are used.
    pub(crate) entries: &'a [PeerEntry],
    pub(crate) participants: &'a [Participant<'a>],
    pub(crate) pairs: &'a Pairs,
    /// What was settled before.
    pub(crate) before: &'a Settled,
    /// Peers by the host's end of their doorbell, from inference.
    pub(crate) inferred: &'a BTreeMap<SocketInode, PeerId>,
}

/// One peer's processes and sockets, as far as they are known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Binding {
    pub(crate) plugin: Option<ProcId>,
    pub(crate) host_end: Option<SocketInode>,
    pub(crate) plugin_end: Option<SocketInode>,
}

/// A plugin's doorbell whose peer id is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loose {
    pub(crate) plugin: ProcId,
    pub(crate) host_end: SocketInode,
    pub(crate) plugin_end: SocketInode,
}

/// The result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) host: Option<ProcId>,
    pub(crate) bindings: BTreeMap<PeerId, Binding>,
    /// Doorbells whose peer is not known, and the peers that they could belong to.
    pub(crate) loose: Vec<Loose>,
    pub(crate) open_peers: Vec<PeerId>,
    /// Processes that could be any of the open peers.
    pub(crate) candidates: Vec<ProcId>,
    /// Other processes may turn out to be one of them.
    pub(crate) more_may_come: bool,
}

/// Draws the conclusions.
pub(crate) fn settle(facts: &Facts<'_>) -> Settled {
    let mut settled = Settled::default();
    for entry in facts.entries {
        settled.bindings.insert(entry.id, Binding::default());
    }
    bind_claims(facts, &mut settled);
    settled.host = host(facts, &settled);
    complete_ends(facts, &mut settled);
    keep_what_was_known(facts, &mut settled);
    find_loose(facts, &mut settled);
    bind_inferred(facts, &mut settled);
    bind_last_one(facts, &mut settled);
    settled
}

/// Command lines: process, and the socket behind the fd if it is one end of a pair.
fn bind_claims(facts: &Facts<'_>, settled: &mut Settled) {
    for participant in facts.participants {
        let Some(peer) = participant
            .claim
            .peer
            .filter(|_| participant.claims_this_hub)
        else {
            continue;
        };
        let Some(binding) = settled.bindings.get_mut(&peer) else {
            continue;
        };
        if let Some(other) = binding.plugin.and_then(|id| find(facts, id))
            && !prefer(participant, other, facts.before.bindings.get(&peer))
        {
            continue;
        }
        let plugin_end = participant
            .claim
            .doorbell_fd
            .and_then(|fd| {
                participant
                    .sockets
                    .held
                    .iter()
                    .find(|socket| socket.fd == fd)
            })
            .map(|socket| socket.inode)
            .filter(|inode| matches!(facts.pairs.kind(*inode), Kind::Pair(_) | Kind::Alone));
        *binding = Binding {
            plugin: Some(participant.id),
            plugin_end,
            host_end: plugin_end.and_then(|inode| facts.pairs.other_end(inode)),
        };
    }
}

/// Of two that claim the same peer, a copy of the other (a child that has not executed yet) is not it; of two
/// generations the later one is.
fn prefer(new: &Participant<'_>, old: &Participant<'_>, before: Option<&Binding>) -> bool {
    if new.parent == old.id.pid {
        return false;
    }
    if old.parent == new.id.pid {
        return true;
    }
    let was = before.and_then(|binding| binding.plugin);
    (new.id.start, was == Some(new.id)) > (old.id.start, was == Some(old.id))
}

/// The host: holds the other ends, has its pid in the file's name, is above the plugins, or uses the most doorbells.
fn host(facts: &Facts<'_>, settled: &Settled) -> Option<ProcId> {
    let plugins: BTreeSet<ProcId> = settled
        .bindings
        .values()
        .filter_map(|binding| binding.plugin)
        .collect();
    let ends: BTreeSet<SocketInode> = settled
        .bindings
        .values()
        .filter_map(|binding| binding.host_end)
        .collect();
    let candidates: Vec<_> = facts
        .participants
        .iter()
        .filter(|participant| !plugins.contains(&participant.id) && !participant.is_fresh_copy)
        .collect();
    let ranked = candidates.iter().map(|candidate| {
        let held = candidate
            .sockets
            .held
            .iter()
            .filter(|socket| ends.contains(&socket.inode))
            .count();
        let descendants = facts
            .participants
            .iter()
            .filter(|other| other.ancestors.contains(&candidate.id.pid))
            .count();
        // A plugin uses one doorbell, a host one for each of them.
        let used = candidate
            .used
            .iter()
            .filter(|inode| facts.pairs.other_end(**inode).is_some())
            .count();
        let named = candidate
            .pids
            .iter()
            .any(|pid| file_name_has(facts.path, *pid));
        let was = facts.before.host == Some(candidate.id);
        let rank = (held > 0, named, held, descendants, used, was);
        (rank, candidate)
    });
    // Of equals the oldest: a helper that the host started cannot be older than it.
    let (rank, best) =
        ranked.max_by_key(|(rank, candidate)| (*rank, std::cmp::Reverse(candidate.id.start)))?;
    let evidence = rank != (false, false, 0, 0, 0, false);
    (evidence || candidates.len() == 1).then_some(best.id)
}

/// Whether the file's name has this number in it, not as a part of a longer one.
fn file_name_has(path: &str, pid: u32) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.split(|character: char| !character.is_ascii_digit())
        .any(|number| number.parse() == Ok(pid))
}

/// A plugin whose fd is not known (closed after it was duplicated, or no such argument) still holds its end.
fn complete_ends(facts: &Facts<'_>, settled: &mut Settled) {
    let taken = taken(settled);
    for binding in settled
        .bindings
        .values_mut()
        .filter(|binding| binding.plugin_end.is_none())
    {
        let Some(plugin) = binding.plugin.and_then(|id| find(facts, id)) else {
            continue;
        };
        let Some((plugin_end, host_end)) = own_pair(facts, settled.host, plugin, &taken) else {
            continue;
        };
        binding.plugin_end = Some(plugin_end);
        binding.host_end = Some(host_end);
    }
}

/// The one pair whose ends are held by this process and by the host.
///
/// Doorbells are not close-on-exec in rapace, so a plugin also holds the host's ends of all pairs that are older than
/// it; their other ends the host does not hold.
fn own_pair(
    facts: &Facts<'_>,
    host: Option<ProcId>,
    plugin: &Participant<'_>,
    taken: &BTreeSet<SocketInode>,
) -> Option<(SocketInode, SocketInode)> {
    let host = find(facts, host?)?;
    let pairs: BTreeSet<_> = plugin
        .sockets
        .held
        .iter()
        .filter_map(|socket| Some((socket.inode, facts.pairs.other_end(socket.inode)?)))
        .filter(|(own, other)| {
            holds(host, *other) && !taken.contains(own) && !taken.contains(other)
        })
        .collect();
    let only = |pairs: &[(SocketInode, SocketInode)]| match pairs {
        [pair] => Some(*pair),
        _ => None,
    };
    let all: Vec<_> = pairs.into_iter().collect();
    if let Some(pair) = only(&all) {
        return Some(pair);
    }
    // A plugin uses its own end, and leaves those that it inherited alone.
    let used: Vec<_> = all
        .iter()
        .copied()
        .filter(|(own, _)| plugin.used.contains(own))
        .collect();
    if let Some(pair) = only(&used) {
        return Some(pair);
    }
    let watched: Vec<_> = all
        .iter()
        .copied()
        .filter(|(own, _)| plugin.sockets.watched.contains(own))
        .collect();
    if let Some(pair) = only(&watched) {
        return Some(pair);
    }
    // A host that keeps copies of the plugins' ends lets them be inherited too: then the one that no other plugin has.
    let not_hosts: Vec<_> = all
        .iter()
        .copied()
        .filter(|(own, _)| !holds(host, *own))
        .collect();
    if let Some(pair) = only(&not_hosts) {
        return Some(pair);
    }
    let alone: Vec<_> = all
        .iter()
        .copied()
        .filter(|(own, _)| {
            let others = facts
                .participants
                .iter()
                .filter(|other| other.id != plugin.id && other.id != host.id);
            others.filter(|other| holds(other, *own)).count() == 0
        })
        .collect();
    only(&alone)
}

/// A process that is gone still is whom its entry and its end belong to, until another takes its place.
fn keep_what_was_known(facts: &Facts<'_>, settled: &mut Settled) {
    let claimed: BTreeSet<ProcId> = settled
        .bindings
        .values()
        .filter_map(|binding| binding.plugin)
        .collect();
    let taken = taken(settled);
    for entry in facts.entries {
        let Some(old) = facts.before.bindings.get(&entry.id) else {
            continue;
        };
        let Some(binding) = settled.bindings.get_mut(&entry.id) else {
            continue;
        };
        let same_host = settled.host == facts.before.host;
        match (binding.plugin, old.plugin) {
            (None, Some(plugin)) if same_host && !claimed.contains(&plugin) => {
                // Given out anew: the old process is not coming back.
                let present = find(facts, plugin).is_some();
                if present
                    || entry.is_expected_alive()
                        && entry.flags & shm_transport::layout::peer::FLAG_ACTIVE != 0
                {
                    *binding = *old;
                }
            }
            (Some(new), Some(plugin)) if new == plugin => {
                let free = |end: Option<SocketInode>| end.filter(|end| !taken.contains(end));
                binding.plugin_end = binding.plugin_end.or(free(old.plugin_end));
                binding.host_end = binding.host_end.or(free(old.host_end));
            }
            _ => {}
        }
    }
}

/// What is left over: participants without a part, doorbells and entries without a process.
fn find_loose(facts: &Facts<'_>, settled: &mut Settled) {
    let bound: BTreeSet<ProcId> = settled
        .bindings
        .values()
        .filter_map(|binding| binding.plugin)
        .collect();
    let taken = taken(settled);
    settled.open_peers = facts
        .entries
        .iter()
        .filter(|entry| entry.is_expected_alive() && settled.bindings[&entry.id].plugin.is_none())
        .map(|entry| entry.id)
        .collect();
    settled.more_may_come = facts.participants.iter().any(|one| one.is_fresh_copy);
    for participant in facts.participants {
        let elsewhere = participant.claim.peer.is_some() && !participant.claims_this_hub;
        if bound.contains(&participant.id)
            || settled.host == Some(participant.id)
            || participant.is_fresh_copy
            || elsewhere
        {
            continue;
        }
        settled.candidates.push(participant.id);
        if let Some((plugin_end, host_end)) = own_pair(facts, settled.host, participant, &taken) {
            settled.loose.push(Loose {
                plugin: participant.id,
                host_end,
                plugin_end,
            });
        }
    }
}

/// Ends whose ring was seen to move.
fn bind_inferred(facts: &Facts<'_>, settled: &mut Settled) {
    for loose in std::mem::take(&mut settled.loose) {
        match facts.inferred.get(&loose.host_end) {
            Some(peer) if settled.open_peers.contains(peer) => bind(settled, *peer, loose),
            _ => settled.loose.push(loose),
        }
    }
}

/// One process and one entry left over belong together.
fn bind_last_one(facts: &Facts<'_>, settled: &mut Settled) {
    let ([peer], [candidate]) = (&settled.open_peers[..], &settled.candidates[..]) else {
        return;
    };
    let (peer, candidate) = (*peer, *candidate);
    // Only if nobody else can turn up for that entry: a reserved one may wait for a plugin that is just being started.
    let active = facts.entries.iter().any(|entry| {
        entry.id == peer && entry.flags & shm_transport::layout::peer::FLAG_ACTIVE != 0
    });
    if !active {
        return;
    }
    let own = settled
        .loose
        .iter()
        .position(|loose| loose.plugin == candidate);
    if let Some(at) = own {
        let loose = settled.loose.remove(at);
        bind(settled, peer, loose);
        return;
    }
    let binding = Binding {
        plugin: Some(candidate),
        ..Binding::default()
    };
    settled.bindings.insert(peer, binding);
    settled.open_peers.clear();
    settled.candidates.clear();
}

fn bind(settled: &mut Settled, peer: PeerId, loose: Loose) {
    let binding = Binding {
        plugin: Some(loose.plugin),
        host_end: Some(loose.host_end),
        plugin_end: Some(loose.plugin_end),
    };
    settled.bindings.insert(peer, binding);
    settled.open_peers.retain(|open| *open != peer);
    settled
        .candidates
        .retain(|candidate| *candidate != loose.plugin);
}

/// Ends that belong to somebody already.
fn taken(settled: &Settled) -> BTreeSet<SocketInode> {
    settled
        .bindings
        .values()
        .flat_map(|binding| [binding.host_end, binding.plugin_end])
        .flatten()
        .collect()
}

fn find<'a>(facts: &Facts<'a>, id: ProcId) -> Option<&'a Participant<'a>> {
    facts
        .participants
        .iter()
        .find(|participant| participant.id == id)
}

fn holds(participant: &Participant<'_>, inode: SocketInode) -> bool {
    participant
        .sockets
        .held
        .iter()
        .any(|socket| socket.inode == inode)
}

#[cfg(test)]
#[path = "bind_tests.rs"]
mod tests;
