//! Damage to the shared file: slots that nobody will free, ring indexes that cannot be.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use sim_kit::child;

use super::{Heal, Placed, Scene};
use crate::order::Order;
use crate::spec::Lane;

/// The class of 1 KiB slots.
const SMALLEST_CLASS: usize = 0;
/// Slots that the variant `leaked` takes.
const LEAKED: usize = 32;

/// How long a sound ring is left to be looked at before it is damaged.
const BEFORE_DAMAGE: Duration = Duration::from_millis(400);
/// And how long its consumer stays at work afterwards, at least.
const AFTER_DAMAGE: Duration = Duration::from_secs(2);

impl Scene<'_> {
    pub(super) fn slots_stuck(&self) -> anyhow::Result<Placed> {
        let most = if self.spec.variant == "leaked" {
            LEAKED
        } else {
            usize::MAX
        };
        let taken = self.hub.leak_slots(SMALLEST_CLASS, self.peer.id, most);
        ensure!(taken > 0, "the class has no free slot to leak");
        Ok(Placed::new(Vec::new(), Heal::Never))
    }

    pub(super) async fn ring_corrupt(&self) -> anyhow::Result<Placed> {
        let ring = self.ring;
        let mut answers = Vec::new();
        if matches!(self.spec.variant, "head-back" | "overwritten") {
            // Entries that wait, so that the damage leaves a ring that looks sound at each single look. Their consumer is
            // held up and not asleep: a ring that it leaves alone while it sleeps would be a finding of its own.
            match self.spec.lane {
                Lane::HostToPeer => {
                    self.expect_idle().await?;
                    child::signal(self.peer.pid, Signal::STOP)?;
                }
                Lane::PeerToHost => {
                    self.peer.pause_receiver().await;
                    std::thread::spawn(|| {
                        let start = Instant::now();
                        while start.elapsed() < BEFORE_DAMAGE + AFTER_DAMAGE {
                            std::hint::spin_loop();
                        }
                    });
                }
            }
            for _ in 0..3 {
                answers.push(self.peer.ask(self.victim()).await?);
            }
            self.expect("three entries that wait", || ring.len() == 3)
                .await?;
        } else {
            self.expect("an empty ring", || ring.len() == 0).await?;
            // A plugin that is still about to look would find the damage, and end.
            self.expect_idle().await?;
        }
        match self.spec.variant {
            "head-back" => self.stale_producer(ring.head() - 1).await?,
            "overwritten" => self.stale_producer(ring.head()).await?,
            "overfull" => ring.set_head(ring.tail() + ring.capacity() + 1),
            _ => ring.set_tail(ring.head() + 1),
        }
        Ok(Placed::new(answers, Heal::Never))
    }

    /// A second producer that believes the head to be where it was before: it overwrites the second of the entries that
    /// wait, publishes its own idea of the head, and rings.
    async fn stale_producer(&self, head: u64) -> anyhow::Result<()> {
        // Whoever looks only now and then shall have seen what was there before.
        tokio::time::sleep(BEFORE_DAMAGE).await;
        self.ring.write(self.ring.tail() + 1, &self.victim());
        self.ring.set_head(head);
        match self.spec.lane {
            Lane::HostToPeer => self.bell.ring().context("ringing"),
            // The plugin's end is the plugin's: it rings when it is asked to.
            Lane::PeerToHost => {
                self.peer
                    .send(Order::Ring.request(self.host.totals.next_id()))
                    .await
            }
        }
    }
}
