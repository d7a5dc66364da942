//! Hangs in which no signal is lost: a consumer that blocks, calls that nobody answers, rings without room, the dead.

use anyhow::{Context as _, ensure};
use sim_kit::look;
use tokio::task::yield_now;

use super::{Heal, Placed, Scene};
use crate::order::{Block, Order};
use crate::spec::Lane;

impl Scene<'_> {
    pub(super) async fn consumer_blocked(&self) -> anyhow::Result<Placed> {
        let how = match self.spec.variant {
            "pipe" => Block::Pipe,
            "nanosleep" => Block::Nanosleep,
            "futex" => Block::Futex,
            _ => Block::Wait4,
        };
        self.order(Order::Block(how, self.heal_after())).await?;
        self.expect_blocked().await?;
        let answer = self.peer.ask(self.victim()).await?;
        let (ring, bell) = (self.ring, self.bell);
        self.expect("a token that waits", || ring.len() > 0 && bell.is_unheard())
            .await?;
        Ok(Placed::new(vec![answer], Heal::Passes))
    }

    /// Waits until the plugin's main thread sleeps in something other than epoll.
    async fn expect_blocked(&self) -> anyhow::Result<()> {
        let pid = self.peer.pid;
        let blocked = || {
            look::threads(pid).is_ok_and(|threads| {
                threads
                    .iter()
                    .any(|thread| thread.tid == pid && thread.blocks())
            })
        };
        self.expect("a blocked plugin", blocked).await
    }

    pub(super) async fn never_enqueued(&self) -> anyhow::Result<Placed> {
        let answer = self.peer.expect(self.victim().id)?;
        let (ring, pid) = (self.ring, self.peer.pid);
        self.expect("an idle plugin with an empty ring", || {
            ring.len() == 0 && look::is_idle(pid)
        })
        .await?;
        Ok(Placed::new(vec![answer], Heal::Never))
    }

    pub(super) async fn unanswered(&self) -> anyhow::Result<Placed> {
        let answer = self.ask(Order::Swallow).await?;
        let (requests, pid) = (self.hub.ring(self.peer.id, Lane::HostToPeer), self.peer.pid);
        self.expect("a plugin that took the request and sleeps", || {
            requests.len() == 0 && look::is_idle(pid)
        })
        .await?;
        // The order to ring also gives the answer.
        Ok(Placed::new(vec![answer], Heal::Ring))
    }

    pub(super) async fn ring_full(&self) -> anyhow::Result<Placed> {
        let (ring, pid) = (self.ring, self.peer.pid);
        if self.spec.lane == Lane::PeerToHost {
            self.peer.pause_receiver().await;
            // Its own answer counts too: it must not wait for room with the order unread.
            let flood = Order::Flood(ring.capacity() as u32 + 1);
            let answer = self.ask(flood).await?;
            self.expect("a full ring", || ring.len() == ring.capacity())
                .await?;
            return Ok(Placed::new(vec![answer], Heal::Never));
        }
        if self.spec.variant == "asleep" {
            self.order(Order::Deaf(self.heal_after())).await?;
            self.expect("a sleeping plugin", || look::is_idle(pid))
                .await?;
        } else {
            self.order(Order::Block(Block::Nanosleep, self.heal_after()))
                .await?;
            self.expect_blocked().await?;
        }
        let room = ring.capacity() - ring.len();
        let mut answers = Vec::new();
        for _ in 0..room {
            answers.push(self.peer.ask(self.victim()).await?);
        }
        ensure!(
            ring.len() == ring.capacity(),
            "the ring has room left after {room} requests"
        );
        // One more, which waits for room.
        let (peer, victim) = (self.peer.clone(), self.victim());
        answers.push(peer.expect(victim.id)?);
        tokio::spawn(async move { peer.send(victim).await });
        yield_now().await;
        // Each token of these requests woke it for a moment.
        let full_and_asleep = || ring.len() == ring.capacity() && look::is_asleep(pid);
        self.expect("a full ring and a sleeping plugin", full_and_asleep)
            .await?;
        Ok(Placed::new(answers, Heal::Passes))
    }

    pub(super) async fn peer_died(&self) -> anyhow::Result<Placed> {
        let seat = self.host.seat_of(self.peer.id)?;
        let mut answers = Vec::new();
        let (requests, pid) = (self.hub.ring(self.peer.id, Lane::HostToPeer), self.peer.pid);
        match self.spec.variant {
            "call-open" => {
                answers.push(self.ask(Order::Swallow).await?);
                self.expect("a plugin that took the request", || {
                    requests.len() == 0 && look::is_idle(pid)
                })
                .await?;
            }
            "entries-left" => {
                self.order(Order::Deaf(None)).await?;
                answers.push(self.peer.ask(self.victim()).await?);
                self.expect("an entry that waits", || requests.len() > 0)
                    .await?;
            }
            _ => self.expect("an idle plugin", || look::is_idle(pid)).await?,
        }
        self.host.kill_plugin(seat).context("killing the plugin")?;
        Ok(Placed::new(answers, Heal::Never))
    }
}
