//! The host of every stand-in: hub, plugins, callers, and an orderly end.

use std::any::Any;
use std::ffi::OsString;
use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::OwnedRwLockWriteGuard;
use tokio::task::JoinSet;
use tokio::time::Interval;

use crate::calls::{Peer, Plan, Seat, Totals, caller};
use crate::child::{Plugin, end_all, plugin_name};
use crate::cli::{AfterFault, HostOptions};
use crate::lane::{Message, Transport};
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
    pub fn start(options: HostOptions) -> anyhow::Result<Self> {
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
                    host.end();
                    return Err(error);
                }
            }
        }
        Ok(host)
    }

    /// Adds a peer and starts its plugin.
    pub fn start_plugin(&self, index: usize) -> anyhow::Result<Peer<T::HostSide>> {
        let added = T::add_peer(&self.hub).context("adding a peer to the hub")?;
        let name = plugin_name(index);
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
        self.children
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(child);
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
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
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
    pub fn restart_plugin(&self, seat: &Seat<T::HostSide>) -> anyhow::Result<()> {
        let old = seat.peer();
        let new = self.start_plugin(seat.index)?;
        self.kill_child(old.pid)?;
        old.abandon();
        T::remove_peer(&self.hub, old.id);
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
                self.closed_gates
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(closed);
            }
        }
    }

    /// Keeps something until the plugins have ended, then drops it.
    pub fn keep(&self, thing: impl Any + Send) {
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Box::new(thing));
    }

    /// Lets the calls go on.
    pub fn reopen(&self) {
        self.closed_gates
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
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
    fn end(&self) {
        for seat in &self.seats {
            let peer = seat.peer();
            peer.abandon();
            T::remove_peer(&self.hub, peer.id);
        }
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        end_all(&mut children, Duration::from_secs(2));
        children.clear();
        drop(children);
        // In order, and before the file goes.
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
            .for_each(drop);
        if !self.options.keep_hub {
            // Somebody may have removed it before us: then there is nothing left to do.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Signals that a host listens to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    progress: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            progress: signal(SignalKind::user_defined2())?,
        })
    }
}

/// How a fault stands when its planter returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// No fault was asked for.
    Nothing,
    /// It is there to stay.
    Stays,
    /// It healed; the calls go on to their end.
    Healed,
}

/// What ended a run in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Done,
    Interrupted,
}

/// Runs a host to its end. `plant` runs beside the calls and returns once the fault is in place for good, or healed.
/// SIGTERM and SIGINT end the run in order, SIGUSR2 prints the counters.
pub async fn run<T: Transport, F>(
    options: HostOptions,
    plant: impl FnOnce(Arc<Host<T>>) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<Planted>>,
{
    // Before the first plugin starts, so that a signal cannot leave any behind.
    let signals = Signals::listen().context("listening to signals")?;
    let host = Arc::new(Host::<T>::start(options)?);
    let start = Instant::now();
    let outcome = drive(&host, signals, start, plant(Arc::clone(&host))).await;
    host.plan.stop.store(true, Ordering::Relaxed);
    host.report(
        "done",
        start.elapsed(),
        matches!(outcome, Ok(End::Interrupted)),
    );
    host.end();
    outcome?;
    let wrong = host.totals.mismatched.load(Ordering::Relaxed)
        + host.totals.unexpected.load(Ordering::Relaxed);
    if wrong > 0 {
        bail!("{wrong} answers were not what was asked for");
    }
    Ok(())
}

async fn drive<T: Transport>(
    host: &Arc<Host<T>>,
    mut signals: Signals,
    start: Instant,
    plant: impl Future<Output = anyhow::Result<Planted>>,
) -> anyhow::Result<End> {
    let options = &host.options;
    let mut plant = std::pin::pin!(plant);
    let mut planted = None;
    let mut calls = std::pin::pin!(all_calls(host));
    let mut calling = true;
    let mut deadline = options.duration.map(|duration| start + duration);
    let mut restarts = options
        .restart_every
        .map(|every| tokio::time::interval_at((start + every).into(), every));
    let mut next_restart = 0;
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return Ok(End::Interrupted),
            _ = signals.interrupt.recv() => return Ok(End::Interrupted),
            _ = signals.progress.recv() => host.report("progress", start.elapsed(), false),
            () = until(deadline) => return Ok(End::Done),
            result = &mut calls, if calling => {
                result?;
                calling = false;
            }
            result = &mut plant, if planted.is_none() => {
                planted = Some(result?);
                if let (Some(Planted::Stays), Some(hold)) = (planted, options.fault_hold) {
                    deadline = Some(Instant::now() + hold);
                }
            }
            () = tick(&mut restarts) => {
                if !restart_next(host, &mut next_restart) {
                    restarts = None;
                }
            }
        }
        if !calling && !host.planting.load(Ordering::Relaxed) {
            match planted {
                Some(Planted::Nothing | Planted::Healed) => return Ok(End::Done),
                Some(Planted::Stays) => {}
                // A fault whose moment never came is a wrong command line, and must not look like a hang.
                None => bail!(
                    "calls ended before the fault's moment came: ask for more calls or an earlier moment"
                ),
            }
        }
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

async fn tick(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}

/// Restarts the next plugin in turn; false when the hub has no room for another peer.
fn restart_next<T: Transport>(host: &Host<T>, next: &mut usize) -> bool {
    let Some(seat) = host.seats.get(*next % host.seats.len().max(1)) else {
        return false;
    };
    *next += 1;
    match host.restart_plugin(seat) {
        Ok(()) => true,
        Err(error) => {
            line(&json!({"event": "restarts-ended", "reason": format!("{error:#}")}));
            false
        }
    }
}

/// Greets every plugin, says `ready`, and makes the calls.
async fn all_calls<T: Transport>(host: &Host<T>) -> anyhow::Result<()> {
    for seat in &host.seats {
        let peer = seat.peer();
        let greeting = Message {
            id: host.totals.next_id(),
            channel: 1,
            method: 0,
            payload: b"hello".to_vec(),
        };
        tokio::time::timeout(Duration::from_secs(20), peer.call(greeting))
            .await
            .with_context(|| {
                format!(
                    "{} (peer {}) did not answer its first call in 20 s",
                    peer.name, peer.id
                )
            })?
            .with_context(|| format!("greeting {} (peer {})", peer.name, peer.id))?;
    }
    line(&json!({"event": "ready", "pid": std::process::id(), "mono_ns": mono_ns()}));
    tokio::time::sleep(host.options.start_delay).await;
    let mut callers = JoinSet::new();
    for seat in &host.seats {
        for number in 0..u32::from(host.options.in_flight) {
            callers.spawn(caller(
                Arc::clone(seat),
                number,
                Arc::clone(&host.plan),
                Arc::clone(&host.totals),
            ));
        }
    }
    while let Some(ended) = callers.join_next().await {
        ended.context("a caller ended badly")?;
    }
    Ok(())
}
