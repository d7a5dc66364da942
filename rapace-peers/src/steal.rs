//! A missed wakeup in programs that have no fault of their own: somebody else takes the token.
//!
//! The plugin is stopped while it sleeps with empty rings, the host publishes and rings, the token is taken, the plugin
//! continues. Its interrupted epoll finds nothing ready and sleeps again. No timing is involved.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use rustix::process::Signal;
use serde_json::json;
use sim_kit::host::{Host, Planted};
use sim_kit::lane::{Message, Transport};
use sim_kit::report::{line, mono_ns};
use sim_kit::{child, look, thief};

use crate::cli::send_thief;

/// When to steal, and from whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Theft {
    after: u64,
    peer: u16,
}

impl FromStr for Theft {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (after, peer) = text.split_once(':').unwrap_or((text, "0"));
        match (after.parse(), peer.parse()) {
            (Ok(after), Ok(peer)) => Ok(Self { after, peer }),
            _ => Err(format!("{text:?} is not a moment: write N or N:PEER")),
        }
    }
}

/// Who takes the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Thief {
    /// The host itself, through a duplicate of the plugin's fd.
    Host,
    /// Another process.
    Process,
}

/// Waits for the moment, steals, and either stays or heals by one more call.
pub(crate) async fn steal<T: Transport>(
    host: &Host<T>,
    theft: Theft,
    by: Thief,
) -> anyhow::Result<Planted> {
    let seat = host.seat_of(theft.peer)?;
    seat.reached(theft.after).await;
    host.close_gates(seat).await;
    let peer = seat.peer();
    let second = Duration::from_secs(5);
    ensure!(
        look::until(second, || look::is_idle(peer.pid)).await,
        "plugin {} does not become idle",
        peer.pid
    );
    child::signal(peer.pid, Signal::STOP)?;
    ensure!(
        look::until(second, || look::is_stopped(peer.pid)).await,
        "plugin {} does not stop",
        peer.pid
    );
    let victim = Message {
        id: host.totals.next_id(),
        channel: 1,
        method: 0,
        payload: vec![7; 16],
    };
    let answer = peer.ask(victim).await?;
    match by {
        Thief::Host => {
            let taken = thief::steal_token(peer.pid, peer.plugin_fd)
                .context("reaching the plugin's doorbell")?;
            ensure!(taken, "no token was queued on the plugin's doorbell");
        }
        Thief::Process => send_thief(peer.pid, peer.plugin_fd)?,
    }
    child::signal(peer.pid, Signal::CONT)?;
    ensure!(
        look::until(second, || look::is_idle(peer.pid)).await,
        "plugin {} does not go back to sleep",
        peer.pid
    );
    line(
        &json!({"event": "fault", "fault": "stolen", "peer": peer.id, "lane": "host->peer", "mono_ns": mono_ns(),
        "pid": peer.pid}),
    );
    let Some(heal_after) = host.options.heal_after else {
        return Ok(Planted::Stays);
    };
    tokio::time::sleep(heal_after).await;
    let healer = Message {
        id: host.totals.next_id(),
        channel: 2,
        method: 0,
        payload: vec![8; 16],
    };
    peer.call(healer).await?;
    answer.await.context("the stolen call was never answered")?;
    line(&json!({"event": "healed", "peer": peer.id, "mono_ns": mono_ns()}));
    host.reopen();
    Ok(Planted::Healed)
}
