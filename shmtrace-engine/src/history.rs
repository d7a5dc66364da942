//! What happened on one lane, as far as the records show it.

use std::collections::VecDeque;

use crate::{
    ids::{Mono, ProcId, Tid},
    input::{Event, Indexes},
};

/// Rings and takes kept per lane.
const MOST_CALLS: usize = 32;
/// Events kept per lane for the timeline of a finding.
const MOST_EVENTS: usize = 32;
/// Of each, while a suspicion waits for its verdict: a lane that works again must not wash its story away meanwhile.
const MOST_HELD: usize = 2048;

/// Times of two CPUs may be inverted by this much: a token can be taken before the send that queued it returns, and
/// a record's time is taken at the return. Measured: up to 0.3 ms on bare kernels, 16 ms where a virtual CPU is taken away.
pub(crate) const SKEW: u64 = 20_000_000;
/// No signal is recorded later than this after its token was queued, ns: a thread that is ready to run gets a CPU before.
const LATEST_SIGNAL: u64 = 1_000_000_000;

/// "The last few rings".
const LATELY: usize = 8;
/// Several threads may ring in each other's place; after so many rings at least one found them all done.
const MANY: i64 = 8;

/// A send on the producer's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ring {
    pub(crate) at: Mono,
    pub(crate) proc: ProcId,
    pub(crate) tid: Tid,
    /// Bytes, or a negated errno.
    pub(crate) result: i32,
    /// The lane's head at that moment, where it was read.
    pub(crate) head: Option<u64>,
    /// Rings less entries up to this ring, counted from where the records are complete; `None` if it is from before.
    pub(crate) excess: Option<i64>,
}

/// EAGAIN: the queue is full, so a token is there already.
const EAGAIN: i32 = -11;

impl Ring {
    /// After it there was a token in the queue.
    pub(crate) fn signalled(&self) -> bool {
        self.result > 0 || self.result == EAGAIN
    }
}

/// A token taken from the consumer's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Take {
    pub(crate) at: Mono,
    pub(crate) proc: ProcId,
    pub(crate) tid: Tid,
    /// The lane's head when the call returned, where it was read.
    pub(crate) head: Option<u64>,
}

/// A look at the lane's indexes, from whatever source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) at: Mono,
    pub(crate) ring: Indexes,
}

/// History of one lane, oldest first. Bounded: what is forgotten only makes causes unknown.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    pub(crate) rings: VecDeque<Ring>,
    pub(crate) takes: VecDeque<Take>,
    pub(crate) events: VecDeque<Event>,
    /// Nothing is missing from here on.
    pub(crate) complete_since: Mono,
    /// The first look at the indexes after that.
    pub(crate) first_seen: Option<Seen>,
    /// The last look that showed a smaller head than the present one: the publish came after it.
    pub(crate) before_publish: Option<Seen>,
    last_seen: Option<Seen>,
    /// Rings since nothing is missing.
    calls: i64,
    /// The greatest excess of those that are not kept any more, or at the first look.
    most: Option<i64>,
    tokens: Tokens,
    /// Nothing is forgotten for now.
    held: bool,
}

/// Tokens queued and taken since the records are complete.
#[derive(Debug, Clone, Copy, Default)]
struct Tokens {
    /// Queued less taken; a constant more or less than what is in the queue, unless tokens vanish.
    balance: i64,
    /// What it is with the queue empty.
    settled: Option<i64>,
    /// What it may be, where it has been smaller than that whenever nothing happened.
    candidate: Option<Candidate>,
    last: Option<Mono>,
}

/// A balance that is believed once nothing has contradicted it for long enough.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    /// The first and the latest time at which it was seen.
    since: Mono,
    latest: Mono,
    /// The greatest that was seen.
    balance: i64,
}

impl Tokens {
    fn step(&mut self, at: Mono, by: i64) {
        self.settle(at);
        self.balance = self.balance.saturating_add(by);
        self.last = Some(at);
    }

    /// Takes note of the balance if nothing happened for so long that hardly any two calls can be the wrong way round.
    ///
    /// A signal is recorded when its call is over, and whoever gave it may be off the CPU by then while its token is taken
    /// long ago: the balance is too small for that time. So it is believed to be smaller only once it has stayed so.
    fn settle(&mut self, now: Mono) {
        let Some(last) = self.last.filter(|last| now.since(*last) >= SKEW) else {
            return;
        };
        if self.settled.is_some_and(|settled| self.balance >= settled) {
            self.candidate = None;
            return;
        }
        let before = self.candidate.filter(|_| !self.is_forgotten(last));
        let candidate = Candidate {
            since: before.map_or(last, |before| before.since),
            latest: last,
            balance: before.map_or(self.balance, |before| before.balance.max(self.balance)),
        };
        let quiet = now.since(last) >= LATEST_SIGNAL;
        if quiet || last.since(candidate.since) >= LATEST_SIGNAL {
            self.settled = Some(if quiet {
                self.balance
            } else {
                candidate.balance
            });
            self.candidate = None;
        } else {
            self.candidate = Some(candidate);
        }
    }

    /// Whether the candidate was seen too long ago: whatever made it smaller is over.
    fn is_forgotten(&self, now: Mono) -> bool {
        let candidate = self.candidate.as_ref();
        candidate.is_some_and(|candidate| now.since(candidate.latest) >= LATEST_SIGNAL)
    }

    /// Whether the balance is greater than it can be with the queue empty.
    fn vanished(&self) -> Option<bool> {
        let settled = self.settled?;
        let sure = self.candidate.is_none() || self.is_forgotten(self.last?);
        (sure && self.balance >= settled).then_some(self.balance > settled)
    }
}

impl History {
    /// Nothing happened up to `at` on which the count of tokens could begin too late.
    fn count_from(&mut self, at: Mono) {
        if self.tokens.last.is_none() && at.since(self.complete_since) >= SKEW {
            self.tokens.settled = Some(0);
        }
    }

    /// Something may be missing before `at`.
    pub(crate) fn incomplete_until(&mut self, at: Mono) {
        if at > self.complete_since {
            self.complete_since = at;
            self.first_seen = None;
            self.before_publish = None;
            self.last_seen = None;
            self.tokens = Tokens::default();
            self.calls = 0;
            self.most = None;
            for ring in &mut self.rings {
                ring.excess = None;
            }
        }
    }

    /// The indexes were looked at.
    pub(crate) fn seen(&mut self, at: Mono, ring: Indexes) {
        if at < self.complete_since {
            return;
        }
        let seen = Seen { at, ring };
        self.first_seen.get_or_insert(seen);
        match self.last_seen {
            Some(last) if ring.head > last.ring.head => self.before_publish = Some(last),
            // An older look that comes late says nothing new.
            Some(last) if at < last.at => return,
            _ => {}
        }
        self.last_seen = Some(seen);
    }

    /// Forgets nothing until it is released.
    pub(crate) fn hold(&mut self) {
        self.held = true;
    }

    /// Forgets again what is old.
    pub(crate) fn release(&mut self) {
        self.held = false;
        self.forget_rings(MOST_CALLS);
        shrink(&mut self.takes, MOST_CALLS);
        shrink(&mut self.events, MOST_EVENTS);
    }

    fn forget_rings(&mut self, most: usize) {
        while self.rings.len() > most {
            let forgotten = self.rings.pop_front();
            self.most = self.most.max(forgotten.and_then(|ring| ring.excess));
        }
    }

    fn most(&self, usually: usize) -> usize {
        if self.held { MOST_HELD } else { usually }
    }

    pub(crate) fn rang(&mut self, mut ring: Ring) {
        self.forget_rings(self.most(MOST_CALLS) - 1);
        // Heads only grow: they tell the order of two calls better than the clocks of two CPUs.
        let later = self.rings.iter().rev().take_while(|before| {
            before.head > ring.head && ring.head.is_some() && ring.at.since(before.at) < SKEW
        });
        let place = self.rings.len() - later.count();
        if ring.at >= self.complete_since {
            if ring.result > 0 {
                self.count_from(ring.at);
                self.tokens.step(ring.at, 1);
            }
            if self.calls == 0 {
                self.most = self.first_look(ring.at);
            }
            self.calls += 1;
            let mut before = self.calls;
            for later in self.rings.range_mut(place..) {
                later.excess = later.excess.map(|excess| excess + 1);
                before -= 1;
            }
            let head = ring.head.and_then(|head| i64::try_from(head).ok());
            ring.excess = head.map(|head| before.saturating_sub(head));
        }
        self.rings.insert(place, ring);
    }

    /// The excess at the first look, if no ring for what was there then was still to come: only an empty ring is sure of that.
    fn first_look(&self, ring: Mono) -> Option<i64> {
        let first = self.first_seen?;
        (first.ring.head == 0 && first.at <= ring).then_some(0)
    }

    pub(crate) fn took(&mut self, take: Take) {
        if take.at >= self.complete_since {
            self.count_from(take.at);
            self.tokens.step(take.at, -1);
        }
        let most = self.most(MOST_CALLS);
        shrink(&mut self.takes, most - 1);
        self.takes.push_back(take);
    }

    /// Whether more tokens were queued than taken, with the queue empty now; `None` if that cannot be told.
    pub(crate) fn vanished(&self) -> Option<bool> {
        self.tokens.vanished()
    }

    pub(crate) fn event(&mut self, event: &Event) {
        let most = self.most(MOST_EVENTS);
        shrink(&mut self.events, most - 1);
        self.events.push_back(*event);
    }

    /// The latest events up to `at`, oldest first.
    pub(crate) fn events_until(&self, at: Mono) -> impl Iterator<Item = &Event> {
        let end = self.events.partition_point(|event| event.at <= at);
        self.events.range(end.saturating_sub(MOST_EVENTS)..end)
    }

    /// Rings since the records are complete.
    pub(crate) fn complete_rings(&self) -> impl DoubleEndedIterator<Item = &Ring> {
        self.rings
            .iter()
            .filter(|ring| ring.at >= self.complete_since)
    }

    /// How many signals too many there were up to the ring with this index.
    ///
    /// With one ring for each entry the excess is the same after every ring, and smaller while several threads have
    /// published and not rung yet. So it is what exceeds all that went before that is too much.
    pub(crate) fn surplus(&self, index: usize) -> Surplus {
        let least = self.least(index);
        let Some(ring) = self.rings.get(index) else {
            return Surplus::default();
        };
        let before = self.rings.range(..index).rev();
        let mut counted = before.clone().filter(|ring| ring.excess.is_some());
        let announced = match counted.next() {
            Some(before) => ring.head > before.head,
            None => ring.head > self.first_seen.map(|first| first.ring.head),
        };
        let alone = before
            .filter(|ring| ring.excess.is_some())
            .all(|before| before.tid == ring.tid);
        let few = index.saturating_sub(LATELY);
        Surplus {
            announced,
            // Without anything to compare with, one that announces nothing says nothing.
            least: least.unwrap_or(-1),
            lately: (few..index).any(|index| self.least(index) >= Some(1)),
            sure: least.is_some() && (alone || self.calls > MANY),
        }
    }

    fn least(&self, index: usize) -> Option<i64> {
        let before = self.rings.range(..index).map(|ring| ring.excess);
        let most = before.fold(self.most, Option::max)?;
        Some(self.rings.get(index)?.excess? - most)
    }

    /// The history as it was at an earlier time, when the ring was like this.
    pub(crate) fn until(&self, at: Mono, ring: Indexes) -> Self {
        let mut earlier = self.clone();
        earlier.rings.retain(|ring| ring.at <= at);
        earlier.takes.retain(|take| take.at <= at);
        earlier.tokens = Tokens::default();
        // The last ring that saw an older head is a look at it.
        let older = earlier
            .complete_rings()
            .filter_map(|call| Some((call.at, call.head?)))
            .filter(|(_, head)| *head < ring.head)
            .map(|(at, head)| Seen {
                at,
                ring: Indexes { head, ..ring },
            })
            .next_back();
        earlier.before_publish = older.or(self.first_seen);
        earlier
    }

    /// Whether every publish of the entries from `tail` on happened while the records were complete.
    pub(crate) fn covers(&self, tail: u64) -> bool {
        self.first_seen.is_some_and(|first| first.ring.head <= tail)
    }
}

/// How the signals up to one ring compare with the entries that they had to announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Surplus {
    /// The ring announced an entry that no earlier one had.
    pub(crate) announced: bool,
    /// Signals less entries, compared with the most that there ever was.
    pub(crate) least: i64,
    /// One of the few rings before was one too many.
    pub(crate) lately: bool,
    /// There were enough rings to say so.
    pub(crate) sure: bool,
}

impl Default for Surplus {
    fn default() -> Self {
        Self {
            announced: true,
            least: 0,
            lately: false,
            sure: false,
        }
    }
}

impl Surplus {
    /// The ring had nothing to announce, and too few were seen to say more.
    pub(crate) fn may_be_stray(self) -> bool {
        !self.announced && !self.sure
    }

    /// The ring had nothing to announce, and it was not the second of two producers' either.
    pub(crate) fn is_stray(self) -> bool {
        !self.announced && self.least >= 1 && self.sure
    }
}

fn shrink<T>(queue: &mut VecDeque<T>, most: usize) {
    while queue.len() > most {
        queue.pop_front();
    }
}
