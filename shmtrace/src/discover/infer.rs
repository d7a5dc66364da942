//! Whose ring moves when this doorbell is rung: matching doorbells and peers by watching traffic.
//!
//! Each ring announces at least one new entry, so within any time a doorbell cannot have been rung more often than the
//! head of its lane moved. Candidates that break this are excluded; the one that is left, and moved, is it. A few
//! contradictions are forgiven, since a ring can be late (published before the count began, or rung twice by a program
//! with a bug), and if all are excluded the count begins anew.

use std::collections::BTreeMap;

use shmtrace_engine::{Direction, PeerId, SocketInode};

use super::bind::{Loose, Settled};

/// Rings without a movement that are forgiven.
const FORGIVEN: u64 = 3;
/// Rings with a movement that the last candidate must have.
const SUPPORT: u64 = 3;

/// The state of the matching for one hub.
#[derive(Debug, Default)]
pub(crate) struct Inference {
    doorbells: Vec<Doorbell>,
    peers: Vec<PeerId>,
    found: BTreeMap<SocketInode, PeerId>,
}

/// One doorbell whose peer is not known.
#[derive(Debug)]
struct Doorbell {
    ends: Loose,
    /// Rings since the count began, by direction: to the peer, to the host.
    rings: [u64; 2],
    candidates: BTreeMap<PeerId, Candidate>,
}

/// A peer that it could be.
#[derive(Debug, Default)]
struct Candidate {
    /// Heads when the count began; `None` before the first look.
    began: Option<[u64; 2]>,
    excluded: bool,
}

const DIRECTIONS: [Direction; 2] = [Direction::ToPeer, Direction::ToHost];

impl Inference {
    /// Takes over what is loose now. Counts of what stays loose go on.
    pub(crate) fn follow(&mut self, settled: &Settled) {
        let unchanged = self.peers == settled.open_peers
            && self
                .doorbells
                .iter()
                .map(|doorbell| doorbell.ends)
                .eq(settled.loose.iter().copied());
        if unchanged {
            return;
        }
        self.peers.clone_from(&settled.open_peers);
        self.doorbells = settled
            .loose
            .iter()
            .map(|loose| self.fresh(*loose))
            .collect();
        let bound: Vec<_> = settled
            .bindings
            .values()
            .filter_map(|binding| binding.host_end)
            .collect();
        self.found.retain(|end, _| bound.contains(end));
    }

    /// Whether rings would help.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.doorbells.is_empty() && !self.peers.is_empty()
    }

    /// Somebody sent on this socket.
    pub(crate) fn rung(&mut self, socket: SocketInode) {
        for doorbell in &mut self.doorbells {
            if socket == doorbell.ends.host_end {
                doorbell.rings[0] += 1;
            } else if socket == doorbell.ends.plugin_end {
                doorbell.rings[1] += 1;
            }
        }
    }

    /// Compares rings with movements; `head` reads a lane's head. All rings up to now must have been counted before.
    /// True if something was found.
    pub(crate) fn compare(
        &mut self,
        mut head: impl FnMut(PeerId, Direction) -> Option<u64>,
    ) -> bool {
        let before = self.found.len();
        let mut heads = BTreeMap::new();
        for peer in &self.peers {
            if let (Some(to_peer), Some(to_host)) =
                (head(*peer, DIRECTIONS[0]), head(*peer, DIRECTIONS[1]))
            {
                heads.insert(*peer, [to_peer, to_host]);
            }
        }
        for doorbell in &mut self.doorbells {
            if let Some(peer) = doorbell.compare(&heads) {
                self.found.insert(doorbell.ends.host_end, peer);
            }
        }
        // Two doorbells cannot be the same peer's: then neither is.
        let twice: Vec<_> = self
            .found
            .iter()
            .filter(|(_, peer)| self.found.values().filter(|other| other == peer).count() > 1)
            .map(|(end, _)| *end)
            .collect();
        for end in twice {
            self.found.remove(&end);
        }
        self.found.len() > before
    }

    /// What was found, by the host's end.
    pub(crate) fn found(&self) -> &BTreeMap<SocketInode, PeerId> {
        &self.found
    }

    fn fresh(&self, ends: Loose) -> Doorbell {
        let candidates = self
            .peers
            .iter()
            .map(|peer| (*peer, Candidate::default()))
            .collect();
        Doorbell {
            ends,
            rings: [0; 2],
            candidates,
        }
    }
}

impl Doorbell {
    fn compare(&mut self, heads: &BTreeMap<PeerId, [u64; 2]>) -> Option<PeerId> {
        if self
            .candidates
            .values()
            .any(|candidate| candidate.began.is_none())
        {
            // The count begins at this look.
            self.rings = [0; 2];
            for (peer, candidate) in &mut self.candidates {
                candidate.began = heads.get(peer).copied();
            }
            return None;
        }
        let rings = self.rings;
        for (peer, candidate) in &mut self.candidates {
            let moved = heads.get(peer).zip(candidate.began).map(|(now, began)| {
                [
                    now[0].saturating_sub(began[0]),
                    now[1].saturating_sub(began[1]),
                ]
            });
            let too_few =
                moved.is_none_or(|moved| (0..2).any(|way| rings[way] > moved[way] + FORGIVEN));
            candidate.excluded |= too_few;
        }
        let mut left = self
            .candidates
            .iter()
            .filter(|(_, candidate)| !candidate.excluded);
        let Some((peer, candidate)) = left.next() else {
            // Somebody rings without publishing: begin anew.
            for candidate in self.candidates.values_mut() {
                *candidate = Candidate::default();
            }
            return None;
        };
        let alone = left.next().is_none();
        let moved = |way: usize| {
            heads
                .get(peer)
                .zip(candidate.began)
                .is_some_and(|(now, began)| {
                    rings[way] >= SUPPORT && now[way].saturating_sub(began[way]) >= SUPPORT
                })
        };
        (alone && (moved(0) || moved(1))).then_some(*peer)
    }
}

#[cfg(test)]
mod tests {
    use shmtrace_engine::ProcId;

    use super::*;

    fn settled(peers: &[u16]) -> Settled {
        Settled {
            loose: peers
                .iter()
                .map(|peer| Loose {
                    plugin: ProcId {
                        pid: 100 + u32::from(*peer),
                        start: 1,
                    },
                    host_end: SocketInode(u64::from(*peer) * 2),
                    plugin_end: SocketInode(u64::from(*peer) * 2 + 1),
                })
                .collect(),
            open_peers: peers.iter().map(|peer| PeerId(*peer)).collect(),
            ..Settled::default()
        }
    }

    /// Peers 1, 2, 3 with heads; doorbell n belongs to peer n.
    struct Traffic {
        inference: Inference,
        heads: BTreeMap<(PeerId, bool), u64>,
    }

    impl Traffic {
        fn new() -> Self {
            let mut inference = Inference::default();
            inference.follow(&settled(&[1, 2, 3]));
            Self {
                inference,
                heads: BTreeMap::new(),
            }
        }

        fn look(&mut self) -> bool {
            let heads = &self.heads;
            self.inference.compare(|peer, direction| {
                Some(
                    heads
                        .get(&(peer, direction == Direction::ToPeer))
                        .copied()
                        .unwrap_or(0),
                )
            })
        }

        fn send(&mut self, peer: u16, to_peer: bool) {
            *self.heads.entry((PeerId(peer), to_peer)).or_default() += 1;
            self.inference
                .rung(SocketInode(u64::from(peer) * 2 + u64::from(!to_peer)));
        }
    }

    #[test]
    fn doorbells_are_matched_to_the_rings_that_move_with_them() {
        let mut traffic = Traffic::new();
        assert!(traffic.inference.is_wanted());
        traffic.look();
        for round in 0..40_u16 {
            // Uneven traffic, as of a real build.
            for peer in [1, 1, 2, 3, 3, 3] {
                if peer != 2 || round % 4 == 0 {
                    traffic.send(peer, true);
                }
                traffic.send(peer, false);
            }
            traffic.look();
        }
        // The busiest is found first: nobody else moved that much; then elimination does the rest.
        assert_eq!(
            traffic.inference.found().get(&SocketInode(6)),
            Some(&PeerId(3))
        );
        traffic
            .inference
            .found()
            .iter()
            .for_each(|(end, peer)| assert_eq!(end.0, u64::from(peer.0) * 2));
    }

    #[test]
    fn one_doorbell_that_rings_alone_is_found() {
        let mut traffic = Traffic::new();
        traffic.look();
        for _ in 0..10 {
            traffic.send(2, false);
        }
        assert!(traffic.look());
        assert_eq!(
            traffic.inference.found(),
            &BTreeMap::from([(SocketInode(4), PeerId(2))])
        );
    }

    #[test]
    fn equal_traffic_leads_to_no_guess() {
        let mut traffic = Traffic::new();
        traffic.look();
        for _ in 0..100 {
            for peer in 1..=3 {
                traffic.send(peer, true);
            }
            assert!(!traffic.look());
        }
        assert!(traffic.inference.found().is_empty());
    }

    #[test]
    fn a_few_rings_too_many_exclude_nobody() {
        let mut traffic = Traffic::new();
        traffic.look();
        for _ in 0..FORGIVEN {
            traffic.inference.rung(SocketInode(2));
        }
        traffic.look();
        assert!(
            traffic.inference.doorbells[0]
                .candidates
                .values()
                .all(|candidate| !candidate.excluded)
        );
        traffic.inference.rung(SocketInode(2));
        traffic.look();
        // One more, and all are excluded: it begins anew.
        assert!(
            traffic.inference.doorbells[0]
                .candidates
                .values()
                .all(|candidate| candidate.began.is_none())
        );
    }
}
