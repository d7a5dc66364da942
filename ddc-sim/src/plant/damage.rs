//! Damage to the shared file: slots that nobody will free, ring indexes that cannot be.

use anyhow::ensure;

use super::{Heal, Placed, Scene};
use crate::order::Order;
use crate::spec::Lane;

/// The class of 1 KiB slots.
const SMALLEST_CLASS: usize = 0;
/// Slots that the variant `leaked` takes.
const LEAKED: usize = 32;

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
            // Entries that wait, so that the damage leaves a ring that looks sound at each single look.
            match self.spec.lane {
                Lane::HostToPeer => self.order(Order::Deaf(None)).await?,
                Lane::PeerToHost => self.peer.pause_receiver().await,
            }
            for _ in 0..3 {
                answers.push(self.peer.ask(self.victim()).await?);
            }
            self.expect("three entries that wait", || ring.len() == 3)
                .await?;
        } else {
            self.expect("an empty ring", || ring.len() == 0).await?;
        }
        match self.spec.variant {
            "head-back" => ring.set_head(ring.head() - 1),
            "overwritten" => ring.write(ring.tail() + 1, &self.victim()),
            "overfull" => ring.set_head(ring.tail() + ring.capacity() + 1),
            _ => ring.set_tail(ring.head() + 1),
        }
        Ok(Placed::new(answers, Heal::Never))
    }
}
