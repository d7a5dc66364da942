//! Planting a fault in a running host: wait for its moment, hold the calls back, make it, check that it is there, say so.

mod damage;
mod machine;
mod stall;
mod wakeup;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::json;
use sim_kit::calls::Peer;
use sim_kit::host::Host;
use sim_kit::lane::{Message, Transport};
use sim_kit::look;
use sim_kit::report::{line, mono_ns};
use sim_kit::run::Planted;
use sim_kit::traffic::Dice;
use tokio::sync::oneshot;

use crate::bell::Bell;
use crate::order::Order;
use crate::raw::{RawHub, RawRing};
use crate::spec::{Kind, Lane, Spec};
use crate::wire::Wire;

pub(crate) use machine::{eat_memory, hog};

/// How long anything may take that a fault waits for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The dice stream of moments and seats, away from those of the callers.
const STREAM: u64 = u64::MAX;

/// The peer that is hit, with everything that a fault may use.
struct Scene<'a> {
    host: &'a Arc<Host<Wire>>,
    spec: &'a Spec,
    peer: Arc<Peer<<Wire as Transport>::HostSide>>,
    /// The host's end of the peer's doorbell.
    bell: Bell,
    /// The ring of the lane that is hit.
    ring: RawRing,
    hub: RawHub,
}

/// A fault in place.
#[derive(Debug)]
struct Placed {
    /// Answers that must come once it is healed.
    answers: Vec<oneshot::Receiver<Message>>,
    heal: Heal,
    /// Whether the rings went their way behind the transport's back: the peer must be replaced once it healed.
    behind_the_back: bool,
}

/// What ends a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heal {
    /// One more ring by the lane's producer.
    Ring,
    /// It passes after `--heal-after` by itself.
    Passes,
    /// Nothing does.
    Never,
}

impl Placed {
    fn new(answers: Vec<oneshot::Receiver<Message>>, heal: Heal) -> Self {
        Self {
            answers,
            heal,
            behind_the_back: false,
        }
    }

    fn behind_the_back(self) -> Self {
        Self {
            behind_the_back: true,
            ..self
        }
    }
}

/// Plants the fault; returns once it is in place for good, or healed.
pub(crate) async fn plant(host: Arc<Host<Wire>>, spec: Spec) -> anyhow::Result<Planted> {
    let mut dice = Dice::new(host.options.seed, STREAM);
    let index = spec.seat(&mut dice, host.seats.len());
    let seat = host
        .seats
        .get(index)
        .with_context(|| format!("no peer {index}: start more plugins"))?;
    let share = match host.options.round_trips {
        0 => u64::MAX,
        all => all / host.seats.len() as u64,
    };
    seat.reached(spec.after(&mut dice, share)).await;
    host.close_gates(seat).await;
    let peer = seat.peer();
    let hub = RawHub::of(&host.path)?;
    let scene = Scene {
        host: &host,
        spec: &spec,
        bell: Bell::new(
            peer.host_fd
                .context("the transport does not tell its doorbell")?,
        ),
        ring: hub.ring(peer.id, spec.lane),
        hub,
        peer,
    };
    let placed = scene
        .place()
        .await
        .with_context(|| format!("planting {}", spec.kind.name()))?;
    line(
        &json!({"event": "fault", "fault": spec.kind.name(), "variant": spec.variant, "peer": scene.peer.id,
        "lane": spec.lane.to_string(), "mono_ns": mono_ns(), "pid": scene.peer.pid,
        "head": scene.ring.head(), "tail": scene.ring.tail()}),
    );
    let Some(heal_after) = scene.heal_after() else {
        host.keep(placed.answers);
        return Ok(Planted::Stays);
    };
    let healed = scene.heal(placed, heal_after).await;
    healed.with_context(|| format!("healing {}", spec.kind.name()))?;
    line(
        &json!({"event": "healed", "fault": spec.kind.name(), "peer": scene.peer.id,
        "lane": spec.lane.to_string(), "mono_ns": mono_ns()}),
    );
    host.reopen();
    Ok(Planted::Healed)
}

impl Scene<'_> {
    async fn place(&self) -> anyhow::Result<Placed> {
        match self.spec.kind {
            Kind::ConsumedThenSlept | Kind::Masked => self.consumed_then_slept().await,
            Kind::RungBeforePublish => self.rung_before_publish().await,
            Kind::NeverRung => self.never_rung().await,
            Kind::NeverRungDead => self.never_rung_dead().await,
            Kind::RingFailed => self.ring_failed().await,
            Kind::WrongDoorbell => self.wrong_doorbell().await,
            Kind::Stolen => self.stolen().await,
            Kind::NotDraining => self.not_draining().await,
            Kind::ConsumerBlocked => self.consumer_blocked().await,
            Kind::NeverEnqueued => self.never_enqueued().await,
            Kind::Unanswered => self.unanswered().await,
            Kind::RingFull => self.ring_full().await,
            Kind::SlotsStuck => self.slots_stuck(),
            Kind::RingCorrupt => self.ring_corrupt().await,
            Kind::PeerDied => self.peer_died().await,
            Kind::Starved => self.starved().await,
            Kind::MemoryLimit => self.memory_limit().await,
        }
    }

    /// A plain call's request.
    fn victim(&self) -> Message {
        Message {
            id: self.host.totals.next_id(),
            channel: 1,
            method: 0,
            payload: vec![7; 16],
        }
    }

    /// An order that is answered before it is carried out.
    async fn order(&self, order: Order) -> anyhow::Result<()> {
        self.peer
            .call(order.request(self.host.totals.next_id()))
            .await
            .with_context(|| format!("ordering {order:?}"))
    }

    /// An order that is itself the call that the fault hits.
    async fn ask(&self, order: Order) -> anyhow::Result<oneshot::Receiver<Message>> {
        self.peer
            .ask(order.request(self.host.totals.next_id()))
            .await
            .with_context(|| format!("ordering {order:?}"))
    }

    /// When it shall heal, if it shall.
    fn heal_after(&self) -> Option<Duration> {
        let masked = (self.spec.kind == Kind::Masked)
            .then(|| self.spec.lasts.unwrap_or(Duration::from_millis(20)));
        masked.or(self.spec.lasts).or(self.host.options.heal_after)
    }

    /// Fails, naming what is not so, unless it becomes so.
    async fn expect(&self, what: &str, condition: impl FnMut() -> bool) -> anyhow::Result<()> {
        ensure!(
            look::until(PATIENCE, condition).await,
            "{what} does not come true"
        );
        Ok(())
    }

    /// Waits until the plugin took every token and sleeps: then it also has rung for all that it published.
    async fn expect_idle(&self) -> anyhow::Result<()> {
        let (bell, pid) = (self.bell, self.peer.pid);
        self.expect("an idle plugin", || {
            !bell.is_unheard() && look::is_idle(pid)
        })
        .await
    }

    /// The stuck state: entries wait, no token is queued, the plugin sleeps (or is gone). The host's own sleep is for
    /// others to see, since this thread runs.
    async fn expect_stuck(&self) -> anyhow::Result<()> {
        let (ring, bell, pid) = (self.ring, self.bell, self.peer.pid);
        let no_token = || match self.spec.lane {
            Lane::HostToPeer => !bell.is_unheard(),
            Lane::PeerToHost => !bell.is_rung(),
        };
        let asleep = || look::is_idle(pid) || look::is_dead(pid);
        self.expect("an entry without a token and a sleeping plugin", || {
            ring.len() > 0 && no_token() && asleep()
        })
        .await
    }

    async fn heal(&self, placed: Placed, after: Duration) -> anyhow::Result<()> {
        tokio::time::sleep(after).await;
        match placed.heal {
            Heal::Never => bail!("nothing heals it: leave --heal-after away"),
            Heal::Passes => {}
            Heal::Ring if self.spec.lane == Lane::HostToPeer => {
                self.bell.ring().context("ringing once more")?;
            }
            Heal::Ring => {
                let order = Order::Ring.request(self.host.totals.next_id());
                self.peer
                    .send(order)
                    .await
                    .context("ordering one more ring")?;
            }
        }
        for answer in placed.answers {
            tokio::time::timeout(PATIENCE, answer)
                .await
                .context("a call is still open")?
                .context("a call was given up")?;
        }
        if placed.behind_the_back {
            let seat = self.host.seat_of(self.peer.id)?;
            self.host.restart_plugin(seat).await?;
        }
        Ok(())
    }
}
