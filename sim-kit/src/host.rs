//! The host of every stand-in: its hub, its plugins, the gates of their seats.

use std::any::Any;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use tokio::sync::OwnedRwLockWriteGuard;

use crate::calls::{Peer, Plan, Seat, Totals};
use crate::child::{Plugin, end_all, plugin_name};
use crate::cli::{AfterFault, HostOptions};
use crate::lane::Transport;
use crate::report::{line, mono_ns};

/// Peers that a hub has room for: as many as the format allows, as `ddc`'s hubs have.
const MAX_PEERS: u16 = 32;

/// A hub with its plugins.
pub struct Host<T: Transport> {
    /// What was asked for on the command line.
    pub options: HostOptions,
    /// The hub file.
    pub path: PathBuf,
    /// The transport's handle of it.
    pub hub: Arc<T::Hub>,
    /// The plugins' places.
    pub seats: Vec<Arc<Seat<T::HostSide>>>,
    /// Counters.
    pub totals: Arc<Totals>,
    /// Budget and stop flag of the callers.
    pub plan: Arc<Plan>,
    /// Set while a fault is being planted: the run must not end under it.
    pub planting: AtomicBool,
    command: Vec<OsString>,
    children: Mutex<Vec<Child>>,
    closed_gates: Mutex<Vec<OwnedRwLockWriteGuard<()>>>,
    kept: Mutex<Vec<Box<dyn Any + Send>>>,
}

impl<T: Transport> Host<T> {
    /// Creates the hub and starts the plugins. Call it on the thread that outlives them.
    pub async fn start(options: HostOptions) -> anyhow::Result<Self> {
        let path = options.hub_path();
        let hub = T::create_hub(&path, MAX_PEERS, options.ring_capacity)
            .with_context(|| format!("creating hub {}", path.display()))?;
        line(
            &json!({"event": "host", "pid": std::process::id(), "hub": path, "mono_ns": mono_ns()}),
        );
        let budget = if options.round_trips == 0 {
            u64::MAX
        } else {
            options.round_trips
        };
        let plan = Plan {
            budget: AtomicU64::new(budget),
            stop: AtomicBool::new(false),
            gap: options.gap,
            sizes: options.payload,
            seed: options.seed,
        };
        let mut host = Self {
            command: options
                .plugin_command()
                .context("finding the plugin's program")?,
            path,
            hub,
            seats: Vec::new(),
            totals: Arc::default(),
            plan: Arc::new(plan),
            planting: AtomicBool::new(false),
            children: Mutex::default(),
            closed_gates: Mutex::default(),
            kept: Mutex::default(),
            options,
        };
        for index in 0..usize::from(host.options.plugins) {
            match host.start_plugin(index) {
                Ok(peer) => host.seats.push(Arc::new(Seat::new(index, peer))),
                Err(error) => {
                    host.end().await;
                    return Err(error);
                }
            }
        }
        Ok(host)
    }

    /// Adds a peer and starts its plugin.
    pub fn start_plugin(&self, index: usize) -> anyhow::Result<Peer<T::HostSide>> {
        let name = plugin_name(index);
        let added = T::add_peer(&self.hub, &name).context("adding a peer to the hub")?;
        let plugin = Plugin {
            command: &self.command,
            name: &name,
            hub: &self.path,
            peer: added.id,
            doorbell: added.plugin_fd,
            handover: self.options.handover(),
        };
        let spawned = plugin
            .spawn()
            .with_context(|| format!("starting plugin {name}"));
        // SAFETY: `plugin_fd` was handed to us by `add_peer` to close; nobody else in this process uses it, and the
        // child has its own copy by now.
        drop(unsafe {
            <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(added.plugin_fd)
        });
        let child = spawned?;
        let pid = child.id();
        // For hosts that answer SIGUSR1; if it ended already there is nobody to ask.
        let _ = shm_debug::register_child_pid(pid);
        lock(&self.children).push(child);
        line(
            &json!({"event": "plugin", "peer": added.id, "seat": index, "pid": pid, "name": name,
            "mono_ns": mono_ns()}),
        );
        Ok(Peer::start(added, pid, name, &self.totals))
    }

    /// Kills the plugin of a seat and reaps it; the hub and the open calls are left as they are.
    pub fn kill_plugin(&self, seat: &Seat<T::HostSide>) -> anyhow::Result<()> {
        self.kill_child(seat.peer().pid)
    }

    fn kill_child(&self, pid: u32) -> anyhow::Result<()> {
        let mut children = lock(&self.children);
        let position = children
            .iter()
            .position(|child| child.id() == pid)
            .context("plugin is not ours any more")?;
        let mut child = children.swap_remove(position);
        child
            .kill()
            .and_then(|()| child.wait())
            .with_context(|| format!("ending plugin {pid}"))?;
        Ok(())
    }

    /// Kills the plugin of a seat and puts a new one in its place, as `ddc` does when one dies. The new one starts
    /// first, so that a hub without room for it keeps the old one.
    pub async fn restart_plugin(&self, seat: &Seat<T::HostSide>) -> anyhow::Result<()> {
        let old = seat.peer();
        let new = self.start_plugin(seat.index)?;
        self.kill_child(old.pid)?;
        old.abandon();
        T::bury(&self.hub, old.id, &old.endpoint).await;
        seat.replace(new);
        self.totals.restarts.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Lets the calls in flight on a seat finish and lets no further one begin, for good or until
    /// [`reopen`](Self::reopen). Those of the other seats go on or stop as `--after-fault` says.
    pub async fn close_gates(&self, seat: &Seat<T::HostSide>) {
        self.planting.store(true, Ordering::Relaxed);
        let quiet = self.options.after_fault == AfterFault::Quiet;
        for each in &self.seats {
            if quiet || each.index == seat.index {
                let closed = Arc::clone(&each.gate).write_owned().await;
                lock(&self.closed_gates).push(closed);
            }
        }
    }

    /// Keeps something until the plugins have ended, then drops it.
    pub fn keep(&self, thing: impl Any + Send) {
        lock(&self.kept).push(Box::new(thing));
    }

    /// Lets the calls go on.
    pub fn reopen(&self) {
        lock(&self.closed_gates).clear();
        self.planting.store(false, Ordering::Relaxed);
    }

    /// The seat of a peer id.
    pub fn seat_of(&self, peer: u16) -> anyhow::Result<&Arc<Seat<T::HostSide>>> {
        self.seats
            .iter()
            .find(|seat| seat.peer().id == peer)
            .with_context(|| {
                format!(
                    "no plugin has peer id {peer}: choose one of the {} there are",
                    self.seats.len()
                )
            })
    }

    /// The totals as a line.
    pub fn report(&self, event: &str, elapsed: Duration, interrupted: bool) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let totals = &self.totals;
        let by_seat: Vec<u64> = self.seats.iter().map(|seat| count(&seat.done)).collect();
        line(
            &json!({"event": event, "pid": std::process::id(), "hub": self.path, "mono_ns": mono_ns(),
            "round_trips": count(&totals.round_trips), "by_seat": by_seat,
            "mismatched": count(&totals.mismatched), "unexpected": count(&totals.unexpected),
            "lost": count(&totals.lost), "refused": count(&totals.refused), "restarts": count(&totals.restarts),
            "elapsed_ns": elapsed.as_nanos() as u64, "interrupted": interrupted}),
        );
    }

    /// Ends the plugins and removes the hub file.
    pub(crate) async fn end(&self) {
        let mut children = std::mem::take(&mut *lock(&self.children));
        end_all(&mut children, Duration::from_secs(2));
        for seat in &self.seats {
            let peer = seat.peer();
            peer.abandon();
            T::bury(&self.hub, peer.id, &peer.endpoint).await;
        }
        // In order, and before the file goes.
        lock(&self.kept).drain(..).for_each(drop);
        if !self.options.keep_hub {
            // Somebody may have removed it before us: then there is nothing left to do.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here panics while it holds one of these, and each is valid after any panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
