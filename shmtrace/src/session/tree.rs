//! Which processes belong to the trees: the daemon's copy of the probes' table.
//!
//! The probes enter children by themselves. What existed before they were attached is found by scanning `/proc`
//! until a scan finds nothing new: attach, scan, close over children, scan again. So a fork at any moment is seen by
//! the probes (its parent is entered already) or by a later scan.

use std::collections::{BTreeMap, BTreeSet, hash_map::Entry};

use anyhow::Context as _;
use rustc_hash::FxHashMap;
use shmtrace_common::{PROC_PARTICIPANT, Process};
use shmtrace_engine::ProcId;

use crate::{bounds::Bound, exit::Refusal, observe::mono_now, probes::Probes, process, rights};

/// Scans after which a tree that never stops forking is taken as it is; the probes know the rest.
const MOST_SCANS: usize = 16;
/// Members that were seen alive are looked at every so many times.
const TURNS: u32 = 16;
/// Members looked at each time whether they are still there.
const MOST_LOOKS: usize = 512;
/// Fds of a process whose sockets are remembered.
pub(crate) const MOST_FDS_REMEMBERED: usize = 4096;

/// The processes of the trees.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    members: FxHashMap<u32, Member>,
    /// Members that were dead when they were looked at last, though no record said so.
    dead: BTreeSet<u32>,
    /// Whose turn it is to be looked at.
    turn: u32,
}

/// One process.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) id: ProcId,
    /// Sockets behind fds, as records and looks showed them: says what an fd was that is closed now.
    pub(crate) fds: BTreeMap<i32, u64>,
    /// There was a record of it since this was asked last.
    pub(crate) stirred: bool,
    /// It lived after it had been entered: the record of its end cannot have been missed.
    seen_alive: bool,
    /// It used more sockets than are remembered.
    forgot_fds: bool,
}

impl Tree {
    /// Enters the roots and all their descendants into the probes' table.
    pub(crate) fn adopt(roots: &[u32], probes: &mut Probes) -> anyhow::Result<Self> {
        let mut tree = Self::default();
        for &pid in roots {
            if !tree.enter(pid, probes)? {
                return Err(no_such_process(pid));
            }
        }
        for _ in 0..MOST_SCANS {
            // Parents first or not does not matter: whoever is entered late is a parent in the next scan.
            let known: BTreeSet<u32> = tree
                .members
                .keys()
                .copied()
                .chain(probes.traced())
                .collect();
            let mut found = false;
            for (pid, parent) in parents() {
                if known.contains(&parent) && !tree.members.contains_key(&pid) {
                    found |= tree.enter(pid, probes)?;
                }
            }
            if !found {
                break;
            }
        }
        Ok(tree)
    }

    /// Enters a process that belongs to no root.
    pub(crate) fn add(&mut self, pid: u32, probes: &mut Probes) -> anyhow::Result<()> {
        anyhow::ensure!(self.enter(pid, probes)?, "process {pid} has ended already");
        Ok(())
    }

    /// Enters one process; false if it is gone already.
    fn enter(&mut self, pid: u32, probes: &mut Probes) -> anyhow::Result<bool> {
        let Some(id) = id_of(pid) else {
            return Ok(false);
        };
        if probes.process(pid).is_none() {
            probes
                .trace(
                    pid,
                    &Process {
                        image: mono_now().0,
                        ..Process::default()
                    },
                )
                .with_context(|| format!("cannot trace pid {pid}: {}", Bound::Processes))?;
        }
        self.members.insert(pid, Member::new(id, BTreeMap::new()));
        Ok(true)
    }

    /// The probes saw a process of the tree start another.
    pub(crate) fn forked(&mut self, parent: u32, child: u32) -> ProcId {
        // A child that is gone already keeps its pid as its name (start time 0 is nobody else's) and is no member: the
        // record of its end may have come before this one, from another CPU, and would not come again.
        let Some(id) = id_of(child) else {
            return ProcId {
                pid: child,
                start: 0,
            };
        };
        let fds = self
            .members
            .get(&parent)
            .map(|m| m.fds.clone())
            .unwrap_or_default();
        self.members.insert(child, Member::new(id, fds));
        id
    }

    /// A process ended; the identity it had.
    pub(crate) fn exited(&mut self, pid: u32) -> Option<ProcId> {
        self.members.remove(&pid).map(|member| member.id)
    }

    /// The process with this pid.
    pub(crate) fn member(&mut self, pid: u32) -> Option<&mut Member> {
        self.members.get_mut(&pid)
    }

    /// Whether a process used more sockets than are remembered.
    pub(crate) fn forgot_fds(&self) -> bool {
        self.members.values().any(|member| member.forgot_fds)
    }

    /// Pids of all, in no order.
    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> + '_ {
        self.members.keys().copied()
    }

    /// Those of whom there was a record since this was asked last.
    pub(crate) fn stirred(&mut self) -> impl Iterator<Item = u32> + '_ {
        let stirred = |member: &mut Member| std::mem::take(&mut member.stirred);
        self.members
            .iter_mut()
            .filter_map(move |(pid, member)| stirred(member).then_some(*pid))
    }

    /// Removes members that ended without a record: they were ending when they were entered, and the probes did not know
    /// them yet. Who is dead twice, a second apart, is no record's business any more. Whoever was seen alive is looked at
    /// seldom, in case that something else went wrong, and a large tree in parts.
    pub(crate) fn reap(&mut self, probes: &mut Probes) -> Vec<ProcId> {
        self.turn = (self.turn + 1) % TURNS;
        let look: Vec<(u32, ProcId)> = self
            .members
            .iter()
            .filter(|(pid, member)| {
                !member.seen_alive || self.dead.contains(pid) || **pid % TURNS == self.turn
            })
            .take(MOST_LOOKS)
            .map(|(pid, member)| (*pid, member.id))
            .collect();
        let mut gone = Vec::new();
        for (pid, id) in look {
            if id_of(pid) == Some(id) {
                self.dead.remove(&pid);
                if let Some(member) = self.members.get_mut(&pid) {
                    member.seen_alive = true;
                }
            } else if !self.dead.insert(pid) {
                self.dead.remove(&pid);
                probes.forget(pid);
                gone.extend(self.exited(pid));
            }
        }
        self.dead.retain(|pid| self.members.contains_key(pid));
        gone.sort_unstable();
        gone
    }

    /// Compares with `/proc` after records were lost: who is gone, who came unseen.
    pub(crate) fn resync(&mut self, probes: &mut Probes) -> Vec<ProcId> {
        let mut gone: Vec<u32> = self
            .members
            .iter()
            .filter(|(pid, m)| id_of(**pid) != Some(m.id))
            .map(|(pid, _)| *pid)
            .collect();
        gone.sort_unstable();
        let gone: Vec<ProcId> = gone
            .into_iter()
            .filter_map(|pid| self.exited(pid))
            .collect();
        for pid in probes.traced() {
            if let Entry::Vacant(entry) = self.members.entry(pid) {
                match id_of(pid) {
                    Some(id) => drop(entry.insert(Member::new(id, BTreeMap::new()))),
                    None => probes.forget(pid),
                }
            }
        }
        gone
    }
}

impl Member {
    fn new(id: ProcId, fds: BTreeMap<i32, u64>) -> Self {
        Self {
            id,
            fds,
            stirred: true,
            seen_alive: false,
            forgot_fds: false,
        }
    }

    /// Notes which socket an fd was.
    pub(crate) fn saw_fd(&mut self, fd: i32, inode: u64) {
        if self.fds.len() < MOST_FDS_REMEMBERED || self.fds.contains_key(&fd) {
            self.fds.insert(fd, inode);
        } else {
            self.forgot_fds = true;
        }
    }

    /// The socket that an fd was when it last worked.
    pub(crate) fn socket_of(&self, fd: i32) -> Option<u64> {
        self.fds.get(&fd).copied()
    }
}

/// Flags of the probes' entry for a process.
pub(crate) fn flags(participant: bool) -> u32 {
    if participant { PROC_PARTICIPANT } else { 0 }
}

fn no_such_process(pid: u32) -> anyhow::Error {
    anyhow::anyhow!(
        "no such process: {pid} (is the pid from this pid namespace, and still alive? see `ps -p {pid}`)"
    )
}

/// Refuses processes that cannot be looked into: nothing would be seen of them, and that would look healthy.
pub(crate) fn check_rights(roots: &[u32]) -> Result<(), Refusal> {
    let is_denied = |error: &std::io::Error| error.kind() == std::io::ErrorKind::PermissionDenied;
    for pid in roots {
        // What a thread sleeps in takes more than its mappings do, which CAP_PERFMON shows on newer kernels.
        let call = std::fs::read(format!("/proc/{pid}/syscall")).map(drop);
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).map(drop);
        if call.and(fds).is_err_and(|error| is_denied(&error)) {
            let missing = rights::missing(rights::TO_LOOK);
            return Err(Refusal::not_permitted(format!(
                "may not look into process {pid}: {} missing; run shmtrace as root, with `sudo shmtrace ...`, or with the \
                 capabilities that `shmtrace doctor` names",
                rights::in_words(missing)
            )));
        }
    }
    Ok(())
}

/// Pids of threads that are not processes are refused like dead ones, with a hint.
pub(crate) fn check_roots(roots: &[u32]) -> anyhow::Result<()> {
    for &pid in roots {
        let leader = thread_group(pid).ok_or_else(|| no_such_process(pid))?;
        if leader != pid {
            return Err(Refusal::usage(format!(
                "{pid} is a thread of process {leader}: give --pid-tree {leader}"
            ))
            .into());
        }
    }
    Ok(())
}

/// The incarnation that has this pid now; `None` for zombies too.
fn id_of(pid: u32) -> Option<ProcId> {
    let process = process::Process::open(pid).ok()?;
    (!process.stat().ok()?.is_dead()).then(|| process.id())
}

/// Every process with its parent's pid.
fn parents() -> Vec<(u32, u32)> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| Some((pid, process::Process::open(pid).ok()?.stat().ok()?.parent)))
        .collect()
}

/// The process to which a thread (or process) belongs.
fn thread_group(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("Tgid:"))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_beyond_the_bound_are_forgotten_and_that_is_known() {
        let id = ProcId { pid: 7, start: 1 };
        let mut tree = Tree::default();
        tree.members.insert(7, Member::new(id, BTreeMap::new()));
        let member = tree.member(7).unwrap();
        for fd in 0..MOST_FDS_REMEMBERED as i32 {
            member.saw_fd(fd, 100);
        }
        // One that is known may be another socket now.
        member.saw_fd(3, 101);
        assert_eq!(member.socket_of(3), Some(101));
        assert!(!tree.forgot_fds());
        let member = tree.member(7).unwrap();
        member.saw_fd(1 << 20, 102);
        assert_eq!(member.socket_of(1 << 20), None);
        assert!(tree.forgot_fds());
    }
}
