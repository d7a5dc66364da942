//! The canary: a hub of shmtrace's own, with a host and a plugin as processes of their own, in which a wakeup is lost on
//! purpose now and then. A watch that does not find it, with its cause, is blind, whatever the reason.
//!
//! Everything takes part that finds real ones: probes, records, discovery, observer and engine. Only the engine is another
//! instance of the same, so that nothing of it is counted, reported or recorded as if it were the tree's.

mod bird;
mod schedule;

use std::{
    collections::BTreeSet,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use shmtrace_engine::{
    HubId, ProcId,
    input::{Input, Topology},
};

pub use bird::as_canary;
pub(crate) use schedule::{Count, News, Order, Schedule};

/// How the hubs of canaries are called, this one's and others'.
const PREFIX: &str = "shmtrace-canary-";

/// To whom an input is of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The watch.
    Watch,
    /// The canary's own engine.
    Canary,
    /// Both.
    Both,
    /// It is the canary of another watch, whose wakeups are lost on purpose.
    Nobody,
}

/// How long its host may take to end.
const PATIENCE: Duration = Duration::from_secs(1);

/// The canary's processes, as a watch sees them.
#[derive(Debug)]
pub(crate) struct Canary {
    host: Child,
    /// `None` when they are over.
    orders: Option<ChildStdin>,
}

impl Canary {
    /// Starts its host, which does nothing until it is told to.
    pub(crate) fn start() -> io::Result<(Self, Belongings)> {
        let path = std::env::temp_dir().join(format!("{PREFIX}{}.shm", std::process::id()));
        let mut host = Command::new("/proc/self/exe");
        host.arg0("shmtrace").arg(bird::HOST).arg(&path);
        // The terminal's signals are not for it, and nobody waits for output that it could hold open.
        host.process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut host = host.spawn()?;
        let belongings = Belongings {
            path: Some(path),
            pids: BTreeSet::from([host.id()]),
            ..Belongings::default()
        };
        let orders = host.stdin.take();
        Ok((Self { host, orders }, belongings))
    }

    /// Its host's pid.
    pub(crate) fn pid(&self) -> u32 {
        self.host.id()
    }

    /// Tells it something; fails if it has ended.
    pub(crate) fn order(&mut self, order: Order) -> io::Result<()> {
        let orders = self.orders.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        orders.write_all(&[order.byte()])
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        // It ends with its orders, and takes its plugin and its hub with it.
        drop(self.orders.take());
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.host.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What belongs to canaries: this watch's own, if it has one, and others'.
#[derive(Debug, Default)]
pub(crate) struct Belongings {
    path: Option<PathBuf>,
    hub: Option<HubId>,
    pids: BTreeSet<u32>,
    foreign: BTreeSet<HubId>,
}

impl Belongings {
    /// A process started another.
    pub(crate) fn forked(&mut self, parent: u32, child: u32) {
        if self.pids.contains(&parent) {
            self.pids.insert(child);
        }
    }

    /// Whether a process is of the own canary.
    pub(crate) fn has(&self, pid: u32) -> bool {
        self.pids.contains(&pid)
    }

    /// Whose an input is; takes note of hubs and processes that are new.
    pub(crate) fn owner(&mut self, input: &Input) -> Owner {
        match input {
            Input::Topology(Topology::Hub { hub, path }) => {
                self.note(*hub, Path::new(path));
                self.owner_of(*hub)
            }
            Input::Topology(Topology::Peer(binding)) => {
                let owner = self.owner_of(binding.hub);
                if owner == Owner::Canary {
                    let parts = [binding.host, binding.plugin];
                    self.pids
                        .extend(parts.into_iter().flatten().map(|proc| proc.pid));
                }
                owner
            }
            Input::Topology(Topology::HubGone { hub }) => self.owner_of(*hub),
            Input::Topology(
                Topology::Process { proc, .. } | Topology::ProcessExited { proc, .. },
            ) => self.owner_of_process(*proc),
            Input::Event(event) => self.owner_of_process(event.proc),
            Input::Loss(_) => Owner::Both,
            Input::Sample(sample) => self.owner_of(sample.lane.hub),
            Input::Lane(seen) => self.owner_of(seen.lane.hub),
            Input::Hub(seen) => self.owner_of(seen.hub),
            Input::Memory(_) => Owner::Watch,
        }
    }

    fn note(&mut self, hub: HubId, path: &Path) {
        if self.path.as_deref() == Some(path) {
            self.hub = Some(hub);
        } else if path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()))
        {
            self.foreign.insert(hub);
        }
    }

    fn owner_of(&self, hub: HubId) -> Owner {
        if self.hub == Some(hub) {
            Owner::Canary
        } else if self.foreign.contains(&hub) {
            Owner::Nobody
        } else {
            Owner::Watch
        }
    }

    fn owner_of_process(&self, proc: ProcId) -> Owner {
        if self.has(proc.pid) {
            Owner::Canary
        } else {
            Owner::Watch
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hub_goes_to_whom_it_concerns() {
        let mut own = Belongings {
            path: Some("/tmp/shmtrace-canary-1.shm".into()),
            pids: BTreeSet::from([10]),
            ..Belongings::default()
        };
        let mut hub = |number, path: &str| {
            own.owner(&Input::Topology(Topology::Hub {
                hub: HubId(number),
                path: path.to_owned(),
            }))
        };
        assert_eq!(hub(1, "/tmp/dodeca-hub-7.shm"), Owner::Watch);
        assert_eq!(hub(2, "/tmp/shmtrace-canary-1.shm"), Owner::Canary);
        assert_eq!(
            hub(3, "/proc/9/root/tmp/shmtrace-canary-8.shm"),
            Owner::Nobody
        );
        let mut gone =
            |number| own.owner(&Input::Topology(Topology::HubGone { hub: HubId(number) }));
        assert_eq!(
            [gone(1), gone(2), gone(3)],
            [Owner::Watch, Owner::Canary, Owner::Nobody]
        );
        own.forked(9, 11);
        own.forked(10, 12);
        own.forked(12, 13);
        let is_own = |pid| own.has(pid);
        assert_eq!(
            [9, 10, 11, 12, 13].map(is_own),
            [false, true, false, true, true]
        );
    }
}
