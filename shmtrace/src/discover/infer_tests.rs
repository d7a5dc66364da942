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

/// Peers 1, 2, 3 with lanes; doorbell n belongs to peer n.
struct Traffic {
    inference: Inference,
    lanes: BTreeMap<(PeerId, bool), Indexes>,
    now: u64,
}

impl Traffic {
    fn new() -> Self {
        let mut inference = Inference::default();
        inference.follow(&settled(&[1, 2, 3]));
        Self {
            inference,
            lanes: BTreeMap::new(),
            now: 0,
        }
    }

    fn lane(&self, peer: PeerId, to_peer: bool) -> Indexes {
        self.lanes
            .get(&(peer, to_peer))
            .copied()
            .unwrap_or_default()
    }

    fn look(&mut self) -> bool {
        self.now += 2 * SETTLE;
        let lanes = &self.lanes;
        let head = |peer, direction| {
            let lane = lanes.get(&(peer, direction == Direction::ToPeer));
            Some(lane.copied().unwrap_or_default().head)
        };
        self.inference.compare(Mono(self.now), head);
        // What was looked at is judged at the next look.
        self.now += 2 * SETTLE;
        let found = self.inference.compare(Mono(self.now), head);
        self.inference.take_turns(Mono(self.now));
        self.now += 2 * SETTLE;
        found
    }

    /// A message is published and rung, and the probes read no ring.
    fn send_unread(&mut self, peer: u16) {
        self.lanes.entry((PeerId(peer), true)).or_default().head += 1;
        let socket = SocketInode(u64::from(peer) * 2);
        self.inference.rung(socket, Mono(self.now), [None; 2]);
    }

    /// A message is published and rung, then taken.
    fn send(&mut self, peer: u16, to_peer: bool) {
        self.lanes.entry((PeerId(peer), to_peer)).or_default().head += 1;
        self.now += 1000;
        let socket = SocketInode(u64::from(peer) * 2 + u64::from(!to_peer));
        let trial = self.inference.trials().find(|trial| trial.socket == socket);
        let seen = trial.map_or([None; 2], |trial| {
            [true, false].map(|to_peer| Some(self.lane(trial.candidate, to_peer)))
        });
        self.inference.rung(socket, Mono(self.now), seen);
        self.lanes.entry((PeerId(peer), to_peer)).or_default().tail += 1;
    }
}

#[test]
fn doorbells_are_matched_to_the_rings_that_move_with_them() {
    let mut traffic = Traffic::new();
    assert!(traffic.inference.is_wanted());
    for round in 0..40_u16 {
        traffic.look();
        // Uneven traffic, as of a real build.
        for peer in [1, 1, 2, 3, 3, 3] {
            if peer != 2 || round % 4 == 0 {
                traffic.send(peer, true);
            }
            traffic.send(peer, false);
        }
    }
    traffic.look();
    let expected =
        BTreeMap::from([1, 2, 3].map(|peer| (SocketInode(u64::from(peer) * 2), PeerId(peer))));
    assert_eq!(*traffic.inference.found(), expected);
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
        *traffic.inference.found(),
        BTreeMap::from([(SocketInode(4), PeerId(2))])
    );
}

#[test]
fn peers_that_are_served_in_turn_are_told_apart_by_what_waits() {
    let mut traffic = Traffic::new();
    for _ in 0..40 {
        traffic.look();
        for peer in 1..=3 {
            traffic.send(peer, true);
        }
    }
    traffic.look();
    let expected =
        BTreeMap::from([1, 2, 3].map(|peer| (SocketInode(u64::from(peer) * 2), PeerId(peer))));
    assert_eq!(*traffic.inference.found(), expected);
}

#[test]
fn peers_that_are_served_in_turn_are_told_apart_by_looks_in_between() {
    let mut traffic = Traffic::new();
    traffic.look();
    for peer in [1, 2, 3].repeat(usize::try_from(MISMATCHES + 1).unwrap()) {
        traffic.now += 2 * LATE_RING;
        traffic.send_unread(peer);
        traffic.look();
    }
    let expected =
        BTreeMap::from([1, 2, 3].map(|peer| (SocketInode(u64::from(peer) * 2), PeerId(peer))));
    assert_eq!(*traffic.inference.found(), expected);
}

#[test]
fn a_ring_that_follows_its_entry_late_speaks_against_nobody() {
    let mut traffic = Traffic::new();
    traffic.look();
    for _ in 0..10 {
        traffic.lanes.entry((PeerId(1), true)).or_default().head += 1;
        traffic.look();
        // The look was made between publish and ring.
        traffic.inference.rung(
            SocketInode(2),
            traffic.inference.doorbells[0].looked.plus(LATE_RING),
            [None; 2],
        );
    }
    traffic.look();
    let candidates = &traffic.inference.doorbells[0].candidates;
    assert_eq!(candidates[&PeerId(1)].mismatches, 0);
    assert!(!candidates[&PeerId(1)].excluded);
}

#[test]
fn when_nothing_tells_them_apart_nothing_is_guessed() {
    // In turn, and the probes cannot read any ring.
    let mut traffic = Traffic::new();
    for _ in 0..100 {
        traffic.look();
        for peer in 1..=3_u16 {
            traffic.send_unread(peer);
        }
    }
    assert!(!traffic.look());
    assert!(traffic.inference.found().is_empty());
}

#[test]
fn a_few_rings_too_many_exclude_nobody() {
    let mut traffic = Traffic::new();
    let ring = |traffic: &mut Traffic| traffic.inference.rung(SocketInode(2), Mono(0), [None; 2]);
    traffic.look();
    for _ in 0..FORGIVEN {
        ring(&mut traffic);
    }
    traffic.look();
    let excluded = |traffic: &Traffic| {
        traffic.inference.doorbells[0]
            .candidates
            .values()
            .any(|one| one.excluded)
    };
    assert!(!excluded(&traffic));
    ring(&mut traffic);
    traffic.look();
    // One more, and all are excluded: it begins anew.
    assert_eq!(traffic.inference.doorbells[0].rings, [0; 2]);
}

#[test]
fn records_of_the_candidate_before_do_not_count() {
    let mut traffic = Traffic::new();
    traffic.look();
    traffic.inference.take_turns(Mono(traffic.now));
    let seen = [Indexes { head: 5, tail: 4 }; 2];
    let since = traffic.inference.doorbells[0].trial.as_ref().unwrap().since;
    for _ in 0..5 {
        traffic
            .inference
            .rung(SocketInode(2), since.plus(SETTLE - 1), seen.map(Some));
    }
    assert!(
        traffic.inference.doorbells[0]
            .candidates
            .values()
            .all(|candidate| candidate.seen == 0)
    );
    for _ in 0..5 {
        traffic
            .inference
            .rung(SocketInode(2), since.plus(SETTLE), seen.map(Some));
    }
    // The first of them has nothing to be compared with.
    assert_eq!(
        traffic.inference.doorbells[0]
            .candidates
            .values()
            .map(|candidate| candidate.seen)
            .max(),
        Some(4)
    );
}

#[test]
fn what_stays_loose_keeps_its_counts() {
    let mut traffic = Traffic::new();
    traffic.look();
    for _ in 0..5 {
        traffic.send(1, true);
    }
    traffic.look();
    let rings = |traffic: &Traffic| traffic.inference.doorbells[0].rings;
    assert_eq!(rings(&traffic), [5, 0]);
    let mut less = settled(&[1, 2, 3]);
    less.loose.remove(2);
    less.open_peers.remove(2);
    traffic.inference.follow(&less);
    assert_eq!(rings(&traffic), [5, 0]);
    assert_eq!(traffic.inference.doorbells[0].candidates.len(), 2);
    traffic.inference.follow(&settled(&[1, 2, 3]));
    assert_eq!(rings(&traffic), [0, 0], "a new candidate begins anew");
}
