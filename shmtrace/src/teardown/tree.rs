//! A tree of processes that is to be ended.
//!
//! Children that appear meanwhile are found by looking again, every few milliseconds, until everything has ended. What
//! that cannot find is a child whose parent ended between being scanned and being signalled: it has another parent by
//! then. The kernel refuses `fork` to a process with a pending signal, so this happens only to trees that start
//! processes all the time; such a child is named at the end if it can be recognized, and left alone.
//!
//! Before the final SIGKILL the tree is held still, so that nothing can escape it: the roots by `seize`, which their
//! parents do not notice, everything below by SIGSTOP.

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use shmtrace_engine::ProcId;
use thiserror::Error;

use super::seize::{newborn, seize};
use crate::process::{self, Process, Stat};

/// How often new children are looked for while the tree ends. A scan of a thousand processes takes about 10 ms.
const SCAN_EVERY: Duration = Duration::from_millis(20);
/// How long a killed process may take to go: one that sleeps uninterruptibly goes when its call returns.
const KILL_TAKES: Duration = Duration::from_secs(2);
/// Scans until a tree counts as known, or as held still. Each but the last finds something new; trees that start
/// processes all the time always have something, and their next scan comes soon.
const MOST_SCANS: u32 = 16;

/// Why a tree cannot be ended.
#[derive(Debug, Error)]
pub enum TeardownError {
    /// A root that does not exist.
    #[error(
        "no such process: {0} (is the pid from this pid namespace, and still alive? see `ps -p {0}`)"
    )]
    NoSuchProcess(u32),
    /// The init process, whose tree is everything.
    #[error(
        "process {0} is the root of all processes of this machine or container: give the pid of a build or server"
    )]
    Everything(u32),
    /// This process would be a part of it.
    #[error("the tree of process {0} contains this shmtrace itself: run it from another terminal")]
    OwnAncestor(u32),
    /// Another user's process.
    #[error(
        "not permitted to signal process {pid} ({name}), which belongs to another user: run `sudo shmtrace ...`"
    )]
    NotPermitted {
        /// The process.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// Anything else that the kernel says.
    #[error("cannot follow process {pid}: {source}")]
    Io {
        /// The process.
        pid: u32,
        /// What it says.
        source: io::Error,
    },
}

/// A process of the tree, held by a pidfd.
#[derive(Debug)]
pub struct Member {
    /// Which incarnation.
    pub id: ProcId,
    /// Its name (`comm`) when it was found.
    pub name: String,
    /// Its parent when it was found.
    pub parent: u32,
    /// Generations below the root.
    pub depth: usize,
    pidfd: OwnedFd,
    sent: Option<Signal>,
    ended: bool,
}

/// One process that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub id: ProcId,
    /// Its name.
    pub name: String,
    /// The last signal that it was sent; none if it ended before.
    pub after: Option<Signal>,
}

/// How the ending went.
#[derive(Debug, Default)]
pub struct Ending {
    /// What is left, with their state letters: processes in an uninterruptible call, for the most part.
    pub survivors: Vec<(ProcId, String, char)>,
    /// Processes that appeared meanwhile in a session or process group of the tree, but whose parent was gone when
    /// they were first seen: perhaps of the tree, so they are named and left alone.
    pub doubtful: Vec<(ProcId, String)>,
}

/// Processes with a common root, and what became of them.
#[derive(Debug)]
pub struct Tree {
    roots: Vec<u32>,
    members: BTreeMap<u32, Member>,
    /// Members that ended and whose pid was given out again to another one.
    replaced: Vec<u32>,
    began: u64,
    orphans_are_ours: bool,
}

impl Tree {
    /// The trees below these processes, themselves included.
    pub fn gather(roots: &[u32]) -> Result<Self, TeardownError> {
        let own = own_ancestors();
        let mut tree = Self {
            roots: roots.to_vec(),
            members: BTreeMap::new(),
            replaced: Vec::new(),
            began: newest_start(),
            orphans_are_ours: false,
        };
        for &root in roots {
            if is_root_of_all(root) {
                return Err(TeardownError::Everything(root));
            }
            if own.contains(&root) {
                return Err(TeardownError::OwnAncestor(root));
            }
            match hold(root, 0) {
                Ok(Some(member)) => drop(tree.members.insert(root, member)),
                Ok(None) => return Err(TeardownError::NoSuchProcess(root)),
                Err(source) => return Err(TeardownError::Io { pid: root, source }),
            }
        }
        tree.find_all()?;
        Ok(tree)
    }

    /// Gives everything below this process whose parent ends to this process, instead of to init.
    pub fn adopt_orphans() -> io::Result<()> {
        Ok(rustix::process::set_child_subreaper(Some(
            rustix::process::getpid(),
        ))?)
    }

    /// Everything below this process. After [`adopt_orphans`](Self::adopt_orphans) nothing can escape from it.
    pub fn below_this_process() -> Result<Self, TeardownError> {
        let mut tree = Self {
            roots: Vec::new(),
            members: BTreeMap::new(),
            replaced: Vec::new(),
            began: newest_start(),
            orphans_are_ours: true,
        };
        tree.find_all()?;
        Ok(tree)
    }

    /// Its processes as far as they are known, by pid.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// The same, each below its parent.
    pub fn in_order(&self) -> Vec<&Member> {
        let mut rest: Vec<&Member> = self.members.values().rev().collect();
        let mut ordered = Vec::with_capacity(rest.len());
        let mut next: Vec<&Member> = rest.extract_if(.., |member| member.depth == 0).collect();
        while let Some(member) = next.pop() {
            ordered.push(member);
            let pid = member.id.pid;
            next.extend(rest.extract_if(.., |child| child.depth > 0 && child.parent == pid));
        }
        ordered.extend(rest);
        ordered
    }

    /// Ends every process: `first`, and SIGKILL for what is left after `timeout`. `each` is told of each that ended.
    pub fn end(
        &mut self,
        first: Signal,
        timeout: Duration,
        mut each: impl FnMut(&Ended),
    ) -> Result<Ending, TeardownError> {
        self.signal_all(first)?;
        let deadline = Instant::now() + timeout;
        while !self.wait(deadline, &mut each) {
            self.find_more()?;
            self.signal_all(first)?;
            if Instant::now() >= deadline {
                break;
            }
        }
        if self.alive().next().is_some() {
            self.hold_still()?;
            self.signal_all(Signal::KILL)?;
            let deadline = Instant::now() + KILL_TAKES;
            while !self.wait(deadline, &mut each) && Instant::now() < deadline {
                self.enter_newborn()?;
                self.find_more()?;
                self.signal_all(Signal::KILL)?;
            }
        }
        Ok(self.ending())
    }

    fn alive(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| !member.ended)
    }

    /// Waits a moment for some to end; true if nothing is left, nothing new included.
    fn wait(&mut self, deadline: Instant, each: &mut impl FnMut(&Ended)) -> bool {
        let patience = SCAN_EVERY.min(deadline.saturating_duration_since(Instant::now()));
        let mut living: Vec<&mut Member> = self
            .members
            .values_mut()
            .filter(|member| !member.ended)
            .collect();
        let mut fds: Vec<PollFd<'_>> = living
            .iter()
            .map(|member| PollFd::new(&member.pidfd, PollFlags::IN))
            .collect();
        let timeout = Timespec {
            tv_sec: patience.as_secs().cast_signed(),
            tv_nsec: patience.subsec_nanos().into(),
        };
        // An interrupted or failed wait is a short one; the loop comes back.
        let _ready = poll(&mut fds, Some(&timeout));
        let gone: Vec<bool> = fds
            .iter()
            .map(|fd| fd.revents().contains(PollFlags::IN))
            .collect();
        drop(fds);
        for (member, gone) in living.iter_mut().zip(gone) {
            member.ended = gone;
            if gone {
                each(&Ended {
                    id: member.id,
                    name: member.name.clone(),
                    after: member.sent,
                });
            }
        }
        living.iter().all(|member| member.ended) && self.find_more().is_ok_and(|found| !found)
    }

    /// Looks for children of members; true if there were new ones.
    fn find_more(&mut self) -> Result<bool, TeardownError> {
        let mut found = false;
        for (pid, stat) in processes() {
            if !self.is_known(pid, stat.start)
                && let Some(depth) = self.depth_below(stat.parent)
            {
                found |= self.enter(pid, depth)?;
            }
        }
        Ok(found)
    }

    /// Looks until there is nothing new.
    fn find_all(&mut self) -> Result<(), TeardownError> {
        for _ in 0..MOST_SCANS {
            if !self.find_more()? {
                break;
            }
        }
        Ok(())
    }

    fn is_known(&self, pid: u32, start: u64) -> bool {
        self.members
            .get(&pid)
            .is_some_and(|member| member.id.start == start)
    }

    /// The depth of a child of `parent`, if that makes it a member.
    fn depth_below(&self, parent: u32) -> Option<usize> {
        if self.orphans_are_ours && parent == std::process::id() {
            return Some(0);
        }
        self.members
            .get(&parent)
            .filter(|member| !member.ended)
            .map(|member| member.depth + 1)
    }

    /// Takes a process in, if its parent still is a member that lives: only then the parent's pid means that member.
    fn enter(&mut self, pid: u32, depth: usize) -> Result<bool, TeardownError> {
        let member = hold(pid, depth).map_err(|source| TeardownError::Io { pid, source })?;
        let Some(member) = member else {
            return Ok(false);
        };
        let parent_lives = self.orphans_are_ours && member.parent == std::process::id()
            || self
                .members
                .get(&member.parent)
                .is_some_and(|parent| !has_ended(&parent.pidfd));
        if !parent_lives {
            return Ok(false);
        }
        if let Some(before) = self.members.insert(pid, member) {
            self.replaced.push(before.id.pid);
        }
        Ok(true)
    }

    /// Sends a signal to every member that has not had it yet, and wakes those that are stopped.
    fn signal_all(&mut self, signal: Signal) -> Result<(), TeardownError> {
        for member in self.members.values_mut() {
            if member.ended || member.sent == Some(signal) {
                continue;
            }
            member.send(signal)?;
            member.sent = Some(signal);
            if signal != Signal::KILL {
                member.send(Signal::CONT)?;
            }
        }
        Ok(())
    }

    /// Holds everything still: what is stopped or seized does not start processes.
    fn hold_still(&mut self) -> Result<(), TeardownError> {
        for root in self
            .alive()
            .filter(|member| self.roots.contains(&member.id.pid))
        {
            // The parent that SIGSTOP would be told to is this process itself, or seizing is not permitted.
            if self.orphans_are_ours || seize(root.id.pid).is_err() {
                root.send(Signal::STOP)?;
            }
        }
        for _ in 0..MOST_SCANS {
            for member in self
                .alive()
                .filter(|member| !self.roots.contains(&member.id.pid))
            {
                member.send(Signal::STOP)?;
            }
            if !self.find_more()? {
                break;
            }
        }
        Ok(())
    }

    /// Takes in what roots started after they were seized.
    fn enter_newborn(&mut self) -> Result<(), TeardownError> {
        if self.orphans_are_ours {
            return Ok(()); // nothing was seized, and somebody else waits for the child
        }
        for pid in newborn() {
            // Traced by us, so the pid cannot have been given out again.
            if !self.members.contains_key(&pid)
                && let Some(member) =
                    hold(pid, 1).map_err(|source| TeardownError::Io { pid, source })?
            {
                self.members.insert(pid, member);
            }
        }
        Ok(())
    }

    fn ending(&self) -> Ending {
        let mut ending = Ending::default();
        for member in self.alive() {
            let state = Process::open(member.id.pid).and_then(|process| process.stat());
            ending.survivors.push((
                member.id,
                member.name.clone(),
                state.map_or('?', |stat| stat.state),
            ));
        }
        for (pid, stat) in processes() {
            let new = stat.start >= self.began && !self.is_known(pid, stat.start);
            let of_the_tree = [stat.group, stat.session]
                .iter()
                .any(|leader| self.members.contains_key(leader) || self.replaced.contains(leader));
            if new && of_the_tree && !stat.is_dead() {
                ending.doubtful.push((
                    ProcId {
                        pid,
                        start: stat.start,
                    },
                    stat.comm,
                ));
            }
        }
        ending
    }
}

impl Member {
    /// Sends a signal to this incarnation, or to nobody.
    fn send(&self, signal: Signal) -> Result<(), TeardownError> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(Errno::PERM) => Err(TeardownError::NotPermitted {
                pid: self.id.pid,
                name: self.name.clone(),
            }),
            Err(error) => Err(TeardownError::Io {
                pid: self.id.pid,
                source: error.into(),
            }),
        }
    }
}

/// Holds the process that has this pid now; `None` if there is none, or a zombie only.
/// Init, or the root of the kernel's own threads.
fn is_root_of_all(pid: u32) -> bool {
    pid <= 1 || pid == 2 && process::shows_kernel_threads()
}

fn hold(pid: u32, depth: usize) -> io::Result<Option<Member>> {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(None);
    };
    let pidfd = match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Ok(process) = Process::open(pid) else {
        return Ok(None);
    };
    let Ok(stat) = process.stat() else {
        return Ok(None);
    };
    // Alive after the look, so the look was at the process that the pidfd holds.
    if has_ended(&pidfd) {
        return Ok(None);
    }
    Ok(Some(Member {
        id: process.id(),
        name: stat.comm,
        parent: stat.parent,
        depth,
        pidfd,
        sent: None,
        ended: false,
    }))
}

/// A pidfd becomes readable when the last thread has ended.
fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Every process that can be seen.
fn processes() -> Vec<(u32, Stat)> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| Some((pid, Process::open(pid).ok()?.stat().ok()?)))
        .collect()
}

/// Start time of this moment, in the ticks of `/proc/PID/stat`: whatever starts later has this or more. 0 if unknown.
fn newest_start() -> u64 {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = uptime
        .split_ascii_whitespace()
        .next()
        .and_then(|word| word.parse::<f64>().ok());
    seconds.map_or(0, |seconds| {
        (seconds * rustix::param::clock_ticks_per_second() as f64) as u64
    })
}

/// This process and its ancestors.
fn own_ancestors() -> Vec<u32> {
    let mut line = vec![std::process::id()];
    while let Some(&last) = line.last()
        && let Ok(stat) = Process::open(last).and_then(|process| process.stat())
        && stat.parent != 0
        && !line.contains(&stat.parent)
    {
        line.push(stat.parent);
    }
    line
}
