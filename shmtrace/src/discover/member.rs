//! One process of the tree: its mappings of hubs, its sockets, and what its command line says.

use std::{collections::BTreeSet, io};

use shmtrace_common::MAX_HUBS_PER_PROCESS;
use shmtrace_engine::{Mono, ProcId, SocketInode};

use super::claim::{self, Claim};
use crate::{
    bounds::Bound,
    process::{FileKey, MAX_THREADS, MapEntry, Process, Sockets},
};

/// How long a process with its parent's command line is taken for a copy that is about to execute something (ns).
const COPY_LASTS: u64 = 300_000_000;

/// A process of the tree as it was when last examined.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) id: ProcId,
    pub(crate) parent: u32,
    pub(crate) name: String,
    /// Kept open for those that map a hub.
    pub(crate) process: Option<Process>,
    pub(crate) claim: Claim,
    /// Its pids in all pid namespaces that it is in.
    pub(crate) pids: Vec<u32>,
    /// Shared mappings of files that could be hubs.
    pub(crate) mappings: Vec<MapEntry>,
    /// Its sockets, if it maps a hub.
    pub(crate) sockets: Sockets,
    /// Of these, ends of pairs that it was seen to use: it sent on them, took from them, or slept for them.
    pub(crate) used: BTreeSet<SocketInode>,
    /// When its program began, as far as it was seen.
    pub(crate) program_since: Mono,
    /// When it was last examined; `None` = never.
    pub(crate) examined: Option<Mono>,
    /// Something happened to it: examine it at the next occasion.
    pub(crate) hinted: bool,
    /// Looks in a row that showed nothing new, without a record of it in between.
    pub(crate) quiet_looks: u32,
    /// Its command line is its parent's: a copy that may be about to execute something.
    pub(crate) is_copy: bool,
    words: Vec<std::ffi::OsString>,
    threads: u32,
}

impl Member {
    /// A process that was not seen before; to be examined.
    pub(crate) fn new(pid: u32, now: Mono) -> io::Result<Self> {
        let process = Process::open(pid)?;
        let stat = process.stat()?;
        Ok(Self {
            id: process.id(),
            parent: stat.parent,
            name: stat.comm,
            process: None,
            claim: Claim::default(),
            pids: vec![pid],
            mappings: Vec::new(),
            sockets: Sockets::default(),
            used: BTreeSet::new(),
            program_since: Mono(now.0.saturating_sub(age(stat.start))),
            examined: None,
            hinted: true,
            quiet_looks: 0,
            is_copy: false,
            words: Vec::new(),
            threads: 1,
        })
    }

    /// It maps a file that `is_hub` accepts.
    pub(crate) fn maps(&self, is_hub: impl Fn(&MapEntry) -> bool) -> bool {
        self.mappings.iter().any(is_hub)
    }

    /// Reads its mappings anew; what they were before. An error means that it is gone.
    pub(crate) fn examine_mappings(
        &mut self,
        now: Mono,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Vec<MapEntry>> {
        let process = match self.process.take() {
            Some(process) => process,
            None => Process::open(self.id.pid)?,
        };
        if process.id() != self.id {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut mappings = process.shared_mappings(buffer)?;
        mappings.retain(could_be_a_hub);
        let before = std::mem::replace(&mut self.mappings, mappings);
        self.process = Some(process);
        self.examined = Some(now);
        self.hinted = false;
        Ok(before)
    }

    /// Reads what matters of a process that maps a hub, and whether its sockets or its name changed; closes it again if it
    /// maps none.
    pub(crate) fn examine_rest(&mut self, maps_hub: bool, buffer: &mut Vec<u8>) -> bool {
        if !maps_hub {
            self.process = None;
            self.sockets = Sockets::default();
            return false;
        }
        let Some(process) = &self.process else {
            return false;
        };
        let sockets = process.sockets(buffer).unwrap_or_default();
        let mut changed = sockets != self.sockets;
        self.sockets = sockets;
        self.used.extend(&self.sockets.awaited);
        let held = &self.sockets.held;
        self.used
            .retain(|inode| held.iter().any(|socket| socket.inode == *inode));
        if let Ok(pids) = process.namespace_pids()
            && !pids.is_empty()
        {
            self.pids = pids;
        }
        let (Ok(stat), Ok(words)) = (process.stat(), process.command_line()) else {
            return true;
        };
        changed |= self.parent != stat.parent;
        self.parent = stat.parent;
        self.threads = stat.threads;
        // On its way out it has no memory any more to keep them in.
        if words.is_empty() {
            return true;
        }
        let name = claim::name(&stat.comm, &words);
        changed |= self.name != name || self.words != words;
        self.name = name;
        self.claim = Claim::parse(&words);
        self.words = words;
        changed
    }

    /// It was examined; the more often that showed nothing new, the longer it is left alone.
    pub(crate) fn looked_at(&mut self, changed: bool) {
        self.quiet_looks = if changed || self.hinted {
            0
        } else {
            self.quiet_looks.saturating_add(1)
        };
    }

    /// Its name and its pid.
    pub(crate) fn who(&self) -> String {
        format!("{} [{}]", self.name, self.id.pid)
    }

    /// What of it is not seen, since it is more than is looked at.
    pub(crate) fn beyond_bounds(&self, hubs: &[FileKey]) -> Vec<Bound> {
        let mapped = hubs
            .iter()
            .filter(|file| self.maps(|entry| entry.file == **file));
        let mut beyond = Vec::new();
        if mapped.count() > MAX_HUBS_PER_PROCESS {
            beyond.push(Bound::HubsOfProcess { who: self.who() });
        }
        if self.sockets.cut {
            beyond.push(Bound::Fds { who: self.who() });
        }
        if self.threads as usize > MAX_THREADS {
            beyond.push(Bound::Threads { who: self.who() });
        }
        beyond
    }

    /// Compares its command line with that of its parent.
    pub(crate) fn compare_with(&mut self, parent: Option<&[std::ffi::OsString]>) {
        self.is_copy = parent.is_some_and(|words| !words.is_empty() && words == self.words);
    }

    /// It executes another program from now on.
    pub(crate) fn execed(&mut self) {
        self.hinted = true;
        self.is_copy = false;
        self.used.clear();
    }

    /// It is likely to execute its own program in a moment, and plays no part before.
    pub(crate) fn is_fresh_copy(&self, now: Mono) -> bool {
        self.is_copy && self.used.is_empty() && now.since(self.program_since) < COPY_LASTS
    }

    /// Its command line.
    pub(crate) fn words(&self) -> &[std::ffi::OsString] {
        &self.words
    }
}

/// How long ago a process was started, ns, to the accuracy of `start`: in clock ticks since boot.
fn age(start: u64) -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let now = now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned();
    let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
    now.saturating_sub(start.saturating_mul(tick))
}

/// Devices, System V segments and driver buffers have no content to look at.
fn could_be_a_hub(entry: &MapEntry) -> bool {
    let path = entry.path.as_str();
    let device = path.starts_with("/dev/") && !path.starts_with("/dev/shm/");
    let special = [
        "/SYSV",
        "/anon_hugepage",
        "/dmabuf",
        "anon_inode:",
        "socket:",
        "[",
    ];
    !device && !special.iter().any(|prefix| path.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn looks_that_show_nothing_new_are_counted_until_something_is_new() {
        // Not this process, whose sockets come and go with other tests.
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // Whoever answers has started.
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        let mut answer = [0];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut answer)
            .unwrap();
        let now = Mono(1);
        let mut member = Member::new(child.id(), now).unwrap();
        let mut buffer = Vec::new();
        let mut look = |member: &mut Member| {
            member.examine_mappings(now, &mut buffer).unwrap();
            let changed = member.examine_rest(true, &mut buffer);
            member.looked_at(changed);
            member.quiet_looks
        };
        assert_eq!([0, 1, 2, 3], [(); 4].map(|()| look(&mut member)));
        member.words.clear();
        assert_eq!(look(&mut member), 0);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
