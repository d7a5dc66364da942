//! One process of the tree: its mappings of hubs, its sockets, and what its command line says.

use std::{collections::BTreeSet, io};

use shmtrace_engine::{Mono, ProcId, SocketInode};

use super::claim::{self, Claim};
use crate::process::{MapEntry, Process, Sockets};

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
    /// Its command line is its parent's: a copy that may be about to execute something.
    pub(crate) is_copy: bool,
    words: Vec<std::ffi::OsString>,
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
            is_copy: false,
            words: Vec::new(),
        })
    }

    /// It maps a file that `is_hub` accepts.
    pub(crate) fn maps(&self, is_hub: impl Fn(&MapEntry) -> bool) -> bool {
        self.mappings.iter().any(is_hub)
    }

    /// Reads its mappings anew. An error means that it is gone.
    pub(crate) fn examine_mappings(&mut self, now: Mono, buffer: &mut Vec<u8>) -> io::Result<()> {
        let process = match self.process.take() {
            Some(process) => process,
            None => Process::open(self.id.pid)?,
        };
        if process.id() != self.id {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.mappings = process.shared_mappings(buffer)?;
        self.mappings.retain(could_be_a_hub);
        self.process = Some(process);
        self.examined = Some(now);
        self.hinted = false;
        Ok(())
    }

    /// Reads what matters of a process that maps a hub; closes it again if it maps none.
    pub(crate) fn examine_rest(&mut self, maps_hub: bool, buffer: &mut Vec<u8>) {
        if !maps_hub {
            self.process = None;
            self.sockets = Sockets::default();
            return;
        }
        let Some(process) = &self.process else { return };
        self.sockets = process.sockets(buffer).unwrap_or_default();
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
            return;
        };
        self.parent = stat.parent;
        // On its way out it has no memory any more to keep them in.
        if words.is_empty() {
            return;
        }
        self.name = claim::name(&stat.comm, &words);
        self.claim = Claim::parse(&words);
        self.words = words;
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
