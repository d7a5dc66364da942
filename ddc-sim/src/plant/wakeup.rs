//! The ways in which a signal gets lost, and the one in which it is ignored.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use sim_kit::look;
use sim_kit::theft::{self, Thief, steal_from_plugin};

use super::{Heal, PATIENCE, Placed, Scene};
use crate::bell::Failure;
use crate::order::Order;
use crate::spec::Lane;

impl Scene<'_> {
    pub(super) async fn consumed_then_slept(&self) -> anyhow::Result<Placed> {
        let twice = self.spec.variant == "drain-twice";
        let (bell, pid) = (self.bell, self.peer.pid);
        if self.spec.lane == Lane::HostToPeer {
            self.order(if twice {
                Order::EatTokenTwice
            } else {
                Order::EatToken
            })
            .await?;
            // The order's own token may be late; once it is gone, the next one is the victim's.
            let ready = || !bell.is_unheard() && (twice || look::is_idle(pid));
            self.expect("a plugin that waits for a token", ready)
                .await?;
        } else {
            // An idle plugin has rung for everything that it published: what is queued now is late.
            self.expect_idle().await?;
            self.peer.pause_receiver().await;
            self.bell.take_all()?;
            self.eat_own_token(twice);
        }
        let answer = self.peer.ask(self.victim()).await?;
        self.expect_stuck().await?;
        Ok(Placed::new(vec![answer], Heal::Ring))
    }

    /// The host as the consumer that takes the token and sleeps.
    fn eat_own_token(&self, twice: bool) {
        let (bell, peer) = (self.bell, self.peer.clone());
        tokio::spawn(async move {
            if twice {
                while !bell.is_rung() {
                    tokio::time::sleep(Duration::from_micros(100)).await;
                }
            } else {
                bell.rung().await?;
            }
            bell.take_all()?;
            bell.rung().await?;
            peer.resume_receiver();
            Ok::<(), std::io::Error>(())
        });
    }

    pub(super) async fn rung_before_publish(&self) -> anyhow::Result<Placed> {
        if self.spec.lane == Lane::PeerToHost {
            let answer = self.ask(Order::RingThenPublish).await?;
            self.expect_stuck().await?;
            return Ok(Placed::new(vec![answer], Heal::Ring).behind_the_back());
        }
        let (bell, pid) = (self.bell, self.peer.pid);
        self.expect_idle().await?;
        let victim = self.victim();
        let answer = self.peer.expect(victim.id)?;
        self.bell.ring().context("ringing too early")?;
        self.expect("a plugin that looked and slept", || {
            !bell.is_unheard() && look::is_idle(pid)
        })
        .await?;
        self.ring.publish(&victim);
        self.expect_stuck().await?;
        Ok(Placed::new(vec![answer], Heal::Ring).behind_the_back())
    }

    pub(super) async fn never_rung(&self) -> anyhow::Result<Placed> {
        let answer = if self.spec.lane == Lane::PeerToHost {
            self.ask(Order::PublishOnly).await?
        } else {
            self.expect_idle().await?;
            self.publish_victim()?
        };
        self.expect_stuck().await?;
        Ok(Placed::new(vec![answer], Heal::Ring).behind_the_back())
    }

    pub(super) async fn never_rung_dead(&self) -> anyhow::Result<Placed> {
        let answer = self.ask(Order::PublishAndDie).await?;
        self.expect_stuck().await?;
        let seat = self.host.seat_of(self.peer.id)?;
        self.host.kill_plugin(seat)?;
        Ok(Placed::new(vec![answer], Heal::Never))
    }

    pub(super) async fn ring_failed(&self) -> anyhow::Result<Placed> {
        let failures = [
            ("refused", Failure::Refused),
            ("pipe", Failure::Pipe),
            ("badfd", Failure::BadFd),
        ];
        let number = failures
            .iter()
            .position(|(name, _)| *name == self.spec.variant)
            .unwrap_or(0);
        let answer = if self.spec.lane == Lane::PeerToHost {
            self.ask(Order::AnswerUnrung(number as u32)).await?
        } else {
            self.expect_idle().await?;
            let victim = self.victim();
            let answer = self.peer.expect(victim.id)?;
            let saved = self
                .bell
                .break_ring(failures[number].1)
                .context("breaking the doorbell")?;
            // The transport may call this an error or a loss that it survives; the request is published either way.
            let _ = self.peer.send(victim).await;
            self.bell.mend(&saved).context("mending the doorbell")?;
            answer
        };
        self.expect_stuck().await?;
        // A transport may take a failed ring for the end of the other side.
        Ok(Placed::new(vec![answer], Heal::Ring).behind_the_back())
    }

    pub(super) async fn wrong_doorbell(&self) -> anyhow::Result<Placed> {
        let other = self
            .host
            .seats
            .iter()
            .map(|seat| seat.peer())
            .find(|peer| peer.id != self.peer.id);
        let other = other.context("there is no other peer: start at least two plugins")?;
        let bell = crate::bell::Bell::new(
            other
                .host_fd
                .context("the transport does not tell its doorbell")?,
        );
        self.expect_idle().await?;
        let answer = self.publish_victim()?;
        bell.ring().context("ringing the wrong doorbell")?;
        self.expect_stuck().await?;
        Ok(Placed::new(vec![answer], Heal::Ring).behind_the_back())
    }

    /// Publishes a request without ringing; its answer is expected.
    fn publish_victim(&self) -> anyhow::Result<super::oneshot::Receiver<super::Message>> {
        let victim = self.victim();
        let answer = self.peer.expect(victim.id)?;
        self.ring.publish(&victim);
        Ok(answer)
    }

    pub(super) async fn stolen(&self) -> anyhow::Result<Placed> {
        let by_producer = self.spec.variant == "producer";
        let answer = if self.spec.lane == Lane::HostToPeer {
            let by = if by_producer {
                Thief::Host
            } else {
                Thief::Process
            };
            steal_from_plugin(&self.peer, self.victim(), by).await?
        } else {
            let fd = self
                .peer
                .host_fd
                .context("the transport does not tell its doorbell")?;
            if by_producer {
                self.ask(Order::AnswerAndTakeBack(fd as u32)).await?
            } else {
                let answer = self.ask(Order::AnswerToStopped).await?;
                theft::send_thief(std::process::id(), fd, true)?;
                answer
            }
        };
        self.expect_stuck().await?;
        Ok(Placed::new(vec![answer], Heal::Ring))
    }

    pub(super) async fn not_draining(&self) -> anyhow::Result<Placed> {
        let unregistered = self.spec.variant == "unregistered";
        let heal = if unregistered {
            Heal::Never
        } else {
            Heal::Passes
        };
        let (ring, bell, pid) = (self.ring, self.bell, self.peer.pid);
        if self.spec.lane == Lane::HostToPeer {
            self.order(if unregistered {
                Order::Unregister
            } else {
                Order::Deaf(self.heal_after())
            })
            .await?;
            self.expect("a sleeping plugin", || look::is_idle(pid))
                .await?;
            let answer = self.peer.ask(self.victim()).await?;
            let ignored = || ring.len() > 0 && bell.is_unheard() && look::is_idle(pid);
            self.expect("a token that a sleeping plugin leaves queued", ignored)
                .await?;
            return Ok(Placed::new(vec![answer], heal));
        }
        if unregistered {
            self.bell
                .unregister()
                .context("taking the doorbell out of epoll")?;
        } else {
            self.peer.pause_receiver().await;
            if let Some(lasts) = self.heal_after() {
                let peer = self.peer.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(lasts).await;
                    peer.resume_receiver();
                });
            }
        }
        let answer = self.peer.ask(self.victim()).await?;
        ensure!(
            look::until(PATIENCE, || ring.len() > 0
                && bell.is_rung()
                && look::is_idle(pid))
            .await,
            "no token stays queued at the host's end"
        );
        Ok(Placed::new(vec![answer], heal))
    }
}
