//! `--steal-after`: the one fault that comes from outside.

use std::str::FromStr;

use anyhow::Context as _;
use serde_json::json;
use sim_kit::host::Host;
use sim_kit::lane::{Message, Transport};
use sim_kit::report::{line, mono_ns};
use sim_kit::run::Planted;
use sim_kit::theft::{Thief, steal_from_plugin};

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
    let message = |fill| Message {
        id: host.totals.next_id(),
        channel: 1,
        method: 0,
        payload: vec![fill; 16],
    };
    let answer = steal_from_plugin(&peer, message(7), by).await?;
    line(
        &json!({"event": "fault", "fault": "stolen", "peer": peer.id, "lane": "host->peer", "mono_ns": mono_ns(),
        "pid": peer.pid}),
    );
    let Some(heal_after) = host.options.heal_after else {
        return Ok(Planted::Stays);
    };
    tokio::time::sleep(heal_after).await;
    peer.call(message(8)).await?;
    answer.await.context("the stolen call was never answered")?;
    line(&json!({"event": "healed", "peer": peer.id, "mono_ns": mono_ns()}));
    host.reopen();
    Ok(Planted::Healed)
}
