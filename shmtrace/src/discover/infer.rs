//! Whose ring moves when this doorbell is rung: matching doorbells and peers by watching traffic.
//!
//! Each ring announces at least one new entry. Two consequences are used:
//!
//! * Within any time a doorbell cannot have been rung more often than the head of its lane moved, but for a ring that comes
//!   late. Candidates that break this by far are excluded, and so are those that break it between two looks again and again
//!   while another does not. Between looks that follow each other closely not every peer is served, so this tells apart
//!   also those that are served in turn.
//! * At the instant of a ring the right lane's head has moved since the ring before, and usually the entry still waits.
//!   So each doorbell is tried with one candidate after the other: the probes read that candidate's ring at each ring
//!   of the doorbell. This separates peers that are served in turn, too.
//!
//! A few contradictions are forgiven (a ring can come late, or twice from a program with a bug); if all candidates are
//! excluded the count begins anew; and when nothing decides, nothing is guessed.

use std::collections::{BTreeMap, VecDeque};

use shmtrace_engine::{Direction, Mono, PeerId, SocketInode, input::Indexes};

use super::{
    Side,
    bind::{Loose, Settled},
};

/// Rings without a movement that are forgiven.
const FORGIVEN: u64 = 3;
/// Times that a doorbell was rung and a candidate's head did not move, at which it is given up for one without such times,
/// and how many more for each of that one.
const MISMATCHES: u32 = 2;
const MORE: u32 = 3;
/// A ring so soon after a look may be for an entry that was published before it (ns).
const LATE_RING: u64 = 500_000;
/// Rings between two looks that are counted.
const MAX_RINGS: usize = 65_536;
/// As long as doorbells are rung (ns), looks that follow each other closely tell most, up to so many.
const LIVELY: u64 = 20_000_000;
const CLOSE_LOOKS: u32 = 4_096;
/// Looks at heads that wait for their records at most.
const MAX_LOOKS: usize = 16;
/// Records of the time before a look are there this much later (ns).
const RECORDS_LATE: u64 = 3_000_000;
/// Rings with a movement that the last candidate must have.
const SUPPORT: u64 = 3;
/// Rings that are watched with one candidate at a time.
const SLICE: u32 = 8;
/// Records made so soon after the candidate changed may still show the one before (ns).
const SETTLE: u64 = 20_000_000;

const DIRECTIONS: [Direction; 2] = [Direction::ToPeer, Direction::ToHost];

/// The state of the matching for one hub.
#[derive(Debug, Default)]
pub(crate) struct Inference {
    doorbells: Vec<Doorbell>,
    peers: Vec<PeerId>,
    found: BTreeMap<SocketInode, PeerId>,
    /// Heads that were read, until the records of the time before are there.
    looks: VecDeque<Heads>,
    /// When one of the doorbells was last rung.
    rung: Mono,
    /// Looks since the doorbells or the peers were last other ones.
    looked: u32,
}

/// The heads of all open peers at one time.
#[derive(Debug)]
struct Heads {
    at: Mono,
    of: BTreeMap<PeerId, [u64; 2]>,
}

/// What the probes should read at each ring of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TrialEnd {
    pub(crate) socket: SocketInode,
    pub(crate) side: Side,
    pub(crate) candidate: PeerId,
}

/// One doorbell whose peer is not known.
#[derive(Debug)]
struct Doorbell {
    ends: Loose,
    /// Rings up to the last look, by direction: to the peer, to the host.
    rings: [u64; 2],
    /// When it was rung since, and which way.
    new: Vec<(Mono, usize)>,
    /// When that look was.
    looked: Mono,
    candidates: BTreeMap<PeerId, Candidate>,
    trial: Option<Trial>,
}

/// A peer that it could be.
#[derive(Debug, Default)]
struct Candidate {
    /// Heads when the count began; `None` before the first look.
    began: Option<[u64; 2]>,
    /// Heads at the last look.
    heads: [u64; 2],
    /// Times that the doorbell was rung more often between two looks than the heads moved.
    mismatches: u32,
    excluded: bool,
    /// Rings at which its rings were read,
    seen: u32,
    /// ... of which its head had moved since the one before,
    moved: u32,
    /// ... and an entry waited.
    waited: u32,
}

/// The candidate whose rings the probes read now.
#[derive(Debug)]
struct Trial {
    peer: PeerId,
    since: Mono,
    /// How many rings it had been seen at when its turn began.
    seen_before: u32,
    /// Heads at the last ring, by direction.
    heads: [Option<u64>; 2],
}

impl Inference {
    /// Takes over what is loose now. Counts of what stays loose go on.
    pub(crate) fn follow(&mut self, settled: &Settled) {
        let known = self.doorbells.iter().map(|doorbell| doorbell.ends);
        if self.peers == settled.open_peers && known.eq(settled.loose.iter().copied()) {
            return;
        }
        self.peers.clone_from(&settled.open_peers);
        self.looked = 0;
        let mut before = std::mem::take(&mut self.doorbells);
        for loose in &settled.loose {
            let at = before.iter().position(|doorbell| doorbell.ends == *loose);
            let mut doorbell =
                at.map_or_else(|| Doorbell::new(*loose), |at| before.swap_remove(at));
            doorbell.limit_to(&self.peers);
            self.doorbells.push(doorbell);
        }
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

    /// Whether looks that follow each other closely would help just now.
    pub(crate) fn is_lively(&self, now: Mono) -> bool {
        self.is_wanted() && now.since(self.rung) < LIVELY && self.looked < CLOSE_LOOKS
    }

    /// Somebody sent on this socket; `seen` are the rings of the candidate in turn, to the peer and to the host, where
    /// the probes read them.
    pub(crate) fn rung(&mut self, socket: SocketInode, at: Mono, seen: [Option<Indexes>; 2]) {
        for doorbell in &mut self.doorbells {
            let way = match socket {
                end if end == doorbell.ends.host_end => 0,
                end if end == doorbell.ends.plugin_end => 1,
                _ => continue,
            };
            self.rung = self.rung.max(at);
            if doorbell.new.len() < MAX_RINGS {
                doorbell.new.push((at, way));
            }
            if let Some(seen) = seen[way] {
                doorbell.watch(way, at, seen);
            }
        }
    }

    /// Compares rings with movements; `head` reads a lane's head as it is `now`. True if something was found.
    pub(crate) fn compare(
        &mut self,
        now: Mono,
        mut head: impl FnMut(PeerId, Direction) -> Option<u64>,
    ) -> bool {
        let before = self.found.len();
        while let Some(look) = self.looks.pop_front() {
            if now.since(look.at) < RECORDS_LATE {
                self.looks.push_front(look);
                break;
            }
            self.judge(&look);
        }
        let mut of = BTreeMap::new();
        for peer in &self.peers {
            if let (Some(to_peer), Some(to_host)) =
                (head(*peer, DIRECTIONS[0]), head(*peer, DIRECTIONS[1]))
            {
                of.insert(*peer, [to_peer, to_host]);
            }
        }
        self.looked = self.looked.saturating_add(1);
        if self.looks.len() < MAX_LOOKS {
            self.looks.push_back(Heads { at: now, of });
        }
        self.found.len() > before
    }

    fn judge(&mut self, look: &Heads) {
        for doorbell in &mut self.doorbells {
            let rung = doorbell.count_until(look.at);
            // Whoever's doorbell is known needs no other.
            let elsewhere = |peer: &PeerId| {
                let mut found = self.found.iter();
                found.any(|(end, known)| known == peer && *end != doorbell.ends.host_end)
            };
            let taken: Vec<PeerId> = self.peers.iter().copied().filter(elsewhere).collect();
            if let Some(peer) = doorbell
                .compare(&look.of, rung, &taken)
                .or_else(|| doorbell.decide_by_trials())
            {
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
    }

    /// Gives the next candidate its turn where the one before had enough rings; true if one changed.
    pub(crate) fn take_turns(&mut self, now: Mono) -> bool {
        let mut changed = false;
        for (number, doorbell) in self.doorbells.iter_mut().enumerate() {
            changed |= doorbell.take_turn(number, now);
        }
        changed
    }

    /// What the probes should read now.
    pub(crate) fn trials(&self) -> impl Iterator<Item = TrialEnd> {
        self.doorbells.iter().flat_map(|doorbell| {
            let ends = [
                (doorbell.ends.host_end, Side::Host),
                (doorbell.ends.plugin_end, Side::Plugin),
            ];
            let candidate = doorbell.trial.as_ref().map(|trial| trial.peer);
            ends.into_iter().filter_map(move |(socket, side)| {
                Some(TrialEnd {
                    socket,
                    side,
                    candidate: candidate?,
                })
            })
        })
    }

    /// What was found, by the host's end.
    pub(crate) fn found(&self) -> &BTreeMap<SocketInode, PeerId> {
        &self.found
    }
}

impl Doorbell {
    fn new(ends: Loose) -> Self {
        Self {
            ends,
            rings: [0; 2],
            new: Vec::new(),
            looked: Mono(0),
            candidates: BTreeMap::new(),
            trial: None,
        }
    }

    /// Only these peers are open. A new one means that the counts of all begin anew.
    fn limit_to(&mut self, peers: &[PeerId]) {
        self.candidates.retain(|peer, _| peers.contains(peer));
        if peers.iter().any(|peer| !self.candidates.contains_key(peer)) {
            self.candidates = peers
                .iter()
                .map(|peer| (*peer, Candidate::default()))
                .collect();
            self.rings = [0; 2];
        }
        if self
            .trial
            .as_ref()
            .is_some_and(|trial| !peers.contains(&trial.peer))
        {
            self.trial = None;
        }
    }

    /// A ring at which the rings of the candidate in turn were read.
    fn watch(&mut self, way: usize, at: Mono, seen: Indexes) {
        let Some(trial) = &mut self.trial else { return };
        let Some(candidate) = self.candidates.get_mut(&trial.peer) else {
            return;
        };
        if at < trial.since.plus(SETTLE) {
            return;
        }
        if let Some(head) = trial.heads[way] {
            candidate.seen += 1;
            candidate.moved += u32::from(seen.head > head);
            candidate.waited += u32::from(!seen.is_empty());
        }
        trial.heads[way] = Some(seen.head);
    }

    fn take_turn(&mut self, number: usize, now: Mono) -> bool {
        if let Some(trial) = &self.trial
            && let Some(candidate) = self.candidates.get(&trial.peer)
            && !candidate.excluded
            && candidate.seen < trial.seen_before + SLICE
        {
            return false;
        }
        let before = self.trial.as_ref().map(|trial| trial.peer);
        // Those that were seen least; of equals each doorbell begins with another one.
        let count = self.candidates.len().max(1);
        let next = self
            .candidates
            .iter()
            .enumerate()
            .filter(|(_, (_, candidate))| !candidate.excluded)
            .min_by_key(|(at, (_, candidate))| (candidate.seen, (at + number) % count))
            .map(|(_, (peer, candidate))| (*peer, candidate.seen));
        self.trial = next.map(|(peer, seen)| Trial {
            peer,
            since: now,
            seen_before: seen,
            heads: [None; 2],
        });
        before != next.map(|(peer, _)| peer)
    }

    /// Counts the rings up to a look. Gives those that were certainly for entries published since the look before.
    fn count_until(&mut self, at: Mono) -> [u64; 2] {
        let fresh = self.looked.plus(LATE_RING);
        self.looked = at;
        let mut rung = [0; 2];
        let rings = &mut self.rings;
        self.new.retain(|(when, way)| {
            let counted = *when <= at;
            rings[*way] += u64::from(counted);
            rung[*way] += u64::from(counted && *when > fresh);
            !counted
        });
        rung
    }

    /// By counts. Those in `taken` have another doorbell.
    fn compare(
        &mut self,
        heads: &BTreeMap<PeerId, [u64; 2]>,
        rung: [u64; 2],
        taken: &[PeerId],
    ) -> Option<PeerId> {
        if self
            .candidates
            .values()
            .any(|candidate| candidate.began.is_none())
        {
            // The count begins at this look.
            self.rings = [0; 2];
            for (peer, candidate) in &mut self.candidates {
                candidate.began = heads.get(peer).copied();
                candidate.heads = candidate.began.unwrap_or_default();
            }
            return None;
        }
        let rings = self.rings;
        for (peer, candidate) in &mut self.candidates {
            candidate.look(heads.get(peer), rings, rung);
        }
        let mismatches = self.candidates.values().map(|one| one.mismatches);
        let least = mismatches.min().unwrap_or(0);
        for candidate in self.candidates.values_mut() {
            candidate.excluded |= candidate.mismatches >= MISMATCHES + (1 + MORE) * least;
        }
        let mut left = self
            .candidates
            .iter()
            .filter(|(peer, candidate)| !candidate.excluded && !taken.contains(peer));
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

    /// By what was seen at the rings, once every candidate had its turn: the one that moved at nine of ten rings, and
    /// if several did, the one of which an entry waited at half of them, twice as often as of any other.
    fn decide_by_trials(&self) -> Option<PeerId> {
        let left = || {
            self.candidates
                .iter()
                .filter(|(_, candidate)| !candidate.excluded)
        };
        if left().any(|(_, candidate)| candidate.seen < SLICE) {
            return None;
        }
        let mut moving: Vec<_> = left()
            .filter(|(_, candidate)| candidate.moved * 10 >= candidate.seen * 9)
            .collect();
        let rate = |candidate: &Candidate| {
            u64::from(candidate.waited) * 1_000 / u64::from(candidate.seen.max(1))
        };
        moving.sort_by_key(|(_, candidate)| std::cmp::Reverse(rate(candidate)));
        match &moving[..] {
            [(peer, _)] => Some(**peer),
            [(peer, best), (_, second), ..]
                if rate(best) >= 500 && rate(best) >= 2 * rate(second) =>
            {
                Some(**peer)
            }
            _ => None,
        }
    }
}

impl Candidate {
    /// Compares its heads with the rings of the doorbell, since the count began and since the look before.
    fn look(&mut self, heads: Option<&[u64; 2]>, rings: [u64; 2], rung: [u64; 2]) {
        let (Some(heads), Some(began)) = (heads, self.began) else {
            self.excluded = true;
            return;
        };
        for way in 0..2 {
            self.excluded |= rings[way] > heads[way].saturating_sub(began[way]) + FORGIVEN;
            let moved = heads[way].saturating_sub(self.heads[way]);
            self.mismatches += u32::from(rung[way] > moved);
        }
        self.heads = *heads;
    }
}

#[cfg(test)]
#[path = "infer_tests.rs"]
mod tests;
