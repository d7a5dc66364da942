//! A run of a host: the calls, a fault planted beside them, restarts, signals, and an orderly end.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Interval;

use crate::calls::caller;
use crate::cli::HostOptions;
use crate::host::Host;
use crate::lane::{Message, Transport};
use crate::report::{line, mono_ns};

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
    let host = Arc::new(Host::<T>::start(options).await?);
    let start = Instant::now();
    let outcome = drive(&host, signals, start, plant(Arc::clone(&host))).await;
    host.plan.stop.store(true, Ordering::Relaxed);
    host.report(
        "done",
        start.elapsed(),
        matches!(outcome, Ok(End::Interrupted)),
    );
    host.end().await;
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
                if !restart_next(host, &mut next_restart).await {
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
async fn restart_next<T: Transport>(host: &Host<T>, next: &mut usize) -> bool {
    let Some(seat) = host.seats.get(*next % host.seats.len().max(1)) else {
        return false;
    };
    *next += 1;
    match host.restart_plugin(seat).await {
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
    if host.options.start_on_line {
        line_on_stdin()
            .await
            .context("waiting for the line that starts the calls")?;
    }
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

/// Waits for a line, on a thread that ends with it: tokio's own stdin would leave one behind that blocks.
async fn line_on_stdin() -> anyhow::Result<()> {
    let (told, read) = oneshot::channel();
    std::thread::spawn(move || {
        // Whoever waited may be gone, which ends the run anyway.
        let _ = told.send(std::io::stdin().read_line(&mut String::new()));
    });
    if read.await.context("the reader of stdin ended")?? == 0 {
        bail!("stdin was closed without a line");
    }
    Ok(())
}
