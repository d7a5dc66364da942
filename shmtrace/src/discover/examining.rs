//! Looking at processes: those that are new, those that something happened to, and all others now and then.

use std::{collections::BTreeSet, io};

use shmtrace_engine::{HubId, Mono, input::Topology};

use super::{Changes, Discovery, Hub, MAX_HUBS, member::Member};
use crate::{
    bounds::Bound,
    hub::{HubProblem, HubReader, looks_like_a_hub},
    process::{FileKey, MapEntry},
};

/// How often a process that maps a hub is examined without a hint (ns).
const PARTICIPANT_AGAIN: u64 = 2_000_000_000;
/// The same of one that does nothing: twice as long after each look that showed nothing new, up to this (ns). Whoever does
/// something leaves a record, if only of falling asleep again, and is examined as often as before from then on.
const QUIET_AGAIN: u64 = 32_000_000_000;
/// How often any other process is (ns).
const OTHER_AGAIN: u64 = 5_000_000_000;
/// Processes examined in one refresh; the rest follows in the next. One costs about 100 us.
const BUDGET: usize = 256;

impl Discovery {
    /// Enters new processes, removes those that left.
    pub(super) fn follow(&mut self, live: &[u32], now: Mono) {
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

    pub(super) fn remove(&mut self, pid: u32) {
        self.stale |= self.members.remove(&pid).is_some();
        for hub in &mut self.hubs {
            hub.unsettled |= hub.participants.contains(&pid);
        }
    }

    /// Examines the processes that are due; true if there was one.
    pub(super) fn examine_due(&mut self, now: Mono, changes: &mut Changes) -> bool {
        let due: Vec<u32> = self
            .members
            .values()
            .filter(|member| {
                let again = if member.process.is_some() {
                    (PARTICIPANT_AGAIN << member.quiet_looks.min(8)).min(QUIET_AGAIN)
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
            match self.examine(*pid, now, changes) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                    if let Some(member) = self.members.get_mut(pid) {
                        member.examined = Some(now);
                        member.hinted = false;
                        let who = member.who();
                        self.reached(Bound::Mappings { who }, changes);
                    }
                }
                Err(_gone) => self.remove(*pid),
            }
        }
        // A hub found just now concerns those that were examined before.
        for pid in &due {
            let missed = |member: &Member| member.hinted && member.process.is_none();
            if self.members.get(pid).is_some_and(missed)
                && self.examine(*pid, now, changes).is_err()
            {
                self.remove(*pid);
            }
        }
        !due.is_empty()
    }

    fn examine(&mut self, pid: u32, now: Mono, changes: &mut Changes) -> io::Result<()> {
        self.stale = true;
        let Some(member) = self.members.get_mut(&pid) else {
            return Ok(());
        };
        let first = member.examined.is_none();
        let before = member.examine_mappings(now, &mut self.buffer)?;
        // Any piece of a file will do: it is the file that is looked at.
        let mut candidates = member.mappings.clone();
        candidates.sort_by_key(|entry| entry.file);
        candidates.dedup_by_key(|entry| entry.file);
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
        let changed = member.examine_rest(maps_hub, &mut self.buffer) || before != member.mappings;
        member.looked_at(changed);
        if first && !maps_hub {
            return Ok(());
        }
        if (first || name_before != member.name) && maps_hub {
            changes.topology.push(Topology::Process {
                proc: member.id,
                name: member.name.clone(),
            });
        }
        for bound in member.beyond_bounds(&hubs) {
            self.reached(bound, changes);
        }
        let Some(member) = self.members.get_mut(&pid) else {
            return Ok(());
        };
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
            if error.kind() == io::ErrorKind::QuotaExceeded {
                self.reached(Bound::Namespaces, changes);
            } else {
                let note = format!("doorbell queues are read through copied fds: {error}");
                self.note_if(true, &note, changes);
            }
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
        if self.dismissed.may_block(process, entry.file, now) {
            let note = format!(
                "{} is not opened, since that may block: it lies on a file system that a process or another machine serves, or \
                 that is not mounted; if it is a hub, it is not followed",
                entry.path
            );
            self.note_if(true, &note, changes);
            self.dismissed.add(entry.file, now);
            return false;
        }
        if !looks_like_a_hub(process, entry).is_ok_and(|is_hub| is_hub) {
            return self.dismissed.add(entry.file, now);
        }
        if self.hubs.len() >= MAX_HUBS {
            let path = entry.path.clone();
            self.reached(Bound::Hubs { path }, changes);
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
                // Others may have been examined before it was one.
                let mapping = |member: &&mut Member| member.maps(|other| other.file == entry.file);
                let others = self.members.values_mut().filter(mapping);
                others
                    .filter(|member| member.id.pid != pid)
                    .for_each(|member| member.hinted = true);
                false
            }
            Err(error) => {
                let young = self.dismissed.add(entry.file, now) && error.problem.may_pass();
                changes.unsupported |= matches!(error.problem, HubProblem::Version { .. });
                self.note_if(!young, &error.to_string(), changes);
                young
            }
        }
    }
}
