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

/// Times of two CPUs may be inverted by this much: a token can be taken before the send that queued it returns, and
/// a record's time is taken at the return. Measured: up to 0.3 ms on bare kernels, 16 ms where a virtual CPU is taken away.
pub(crate) const SKEW: u64 = 20_000_000;

/// "The last few rings".
const LATELY: usize = 8;

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
    /// The last ring that is not kept any more.
    forgotten: Option<Mono>,
    tokens: Tokens,
}

/// Tokens queued and taken since the records are complete.
#[derive(Debug, Clone, Copy, Default)]
struct Tokens {
    /// Queued less taken; a constant more or less than what is in the queue, unless tokens vanish.
    balance: i64,
    /// The smallest balance at a time when all calls around it had been recorded for sure.
    settled: Option<i64>,
    last: Option<Mono>,
}

impl Tokens {
    fn step(&mut self, at: Mono, by: i64) {
        self.settle(at);
        self.balance = self.balance.saturating_add(by);
        self.last = Some(at);
    }

    /// Takes note of the balance if nothing happened for so long that no two calls can be the wrong way round.
    fn settle(&mut self, now: Mono) {
        if self.last.is_some_and(|last| now.since(last) >= SKEW) {
            let least = self.settled.unwrap_or(i64::MAX).min(self.balance);
            self.settled = Some(least);
        }
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

    pub(crate) fn rang(&mut self, ring: Ring) {
        if ring.result > 0 && ring.at >= self.complete_since {
            self.count_from(ring.at);
            self.tokens.step(ring.at, 1);
        }
        if self.rings.len() == MOST_CALLS {
            self.forgotten = self.rings.pop_front().map(|ring| ring.at);
        }
        // Heads only grow: they tell the order of two calls better than the clocks of two CPUs.
        let later = self.rings.iter().rev().take_while(|before| {
            before.head > ring.head && ring.head.is_some() && ring.at.since(before.at) < SKEW
        });
        self.rings.insert(self.rings.len() - later.count(), ring);
    }

    pub(crate) fn took(&mut self, take: Take) {
        if take.at >= self.complete_since {
            self.count_from(take.at);
            self.tokens.step(take.at, -1);
        }
        push(&mut self.takes, take, MOST_CALLS);
    }

    /// Whether more tokens were queued than taken, with the queue empty now; `None` if that cannot be told.
    pub(crate) fn vanished(&self) -> Option<bool> {
        Some(self.tokens.balance > self.tokens.settled?)
    }

    pub(crate) fn event(&mut self, event: &Event) {
        push(&mut self.events, event.clone(), MOST_EVENTS);
    }

    /// Rings since the records are complete.
    pub(crate) fn complete_rings(&self) -> impl DoubleEndedIterator<Item = &Ring> {
        self.rings
            .iter()
            .filter(|ring| ring.at >= self.complete_since)
    }

    /// How many signals too many there were up to the ring with this index.
    ///
    /// Counted from each earlier ring on: a window that begins between two producers' rings counts one too many, so
    /// the least of all counts is what is sure.
    pub(crate) fn surplus(&self, index: usize) -> Surplus {
        let nothing = Surplus {
            announced: true,
            least: 0,
            lately: false,
        };
        let Some((ring, head)) = self
            .rings
            .get(index)
            .and_then(|ring| Some((ring, ring.head?)))
        else {
            return nothing;
        };
        if ring.at < self.complete_since {
            return nothing;
        }
        let begin = self
            .rings
            .iter()
            .position(|ring| ring.at >= self.complete_since)
            .unwrap_or(index);
        // The count from the first look on is right only if no ring since then is forgotten.
        let first = self.first_seen.filter(|first| {
            self.forgotten.is_none_or(|at| at < self.complete_since)
                && first.at <= self.rings[begin].at
        });
        let first = first.map(|first| (begin, first.ring.head));
        let starts = (begin..index).filter_map(|start| Some((start + 1, self.rings[start].head?)));
        let mut surplus = Surplus {
            announced: true,
            least: i64::MAX,
            lately: false,
        };
        let (mut counted, mut more) = (0_u32, 0_u32);
        for (from, start_head) in first.into_iter().chain(starts) {
            let rings = i64::try_from(index + 1 - from).unwrap_or(i64::MAX);
            let entries = i64::try_from(head.saturating_sub(start_head)).unwrap_or(i64::MAX);
            surplus.least = surplus.least.min(rings - entries);
            if index + 1 - from <= LATELY {
                counted += 1;
                more += u32::from(rings > entries);
            }
            // After the loop this speaks of the ring just before.
            surplus.announced = entries > 0;
        }
        surplus.lately = more * 2 > counted;
        if surplus.least == i64::MAX {
            nothing
        } else {
            surplus
        }
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
    /// Signals less entries, from the earlier ring that gives the least.
    pub(crate) least: i64,
    /// Counted from most of the last few rings there were more signals than entries.
    pub(crate) lately: bool,
}

impl Surplus {
    /// The ring had nothing to announce, and it was not the second of two producers' either.
    pub(crate) fn is_stray(self) -> bool {
        !self.announced && self.least >= 1
    }
}

fn push<T>(queue: &mut VecDeque<T>, value: T, most: usize) {
    if queue.len() == most {
        queue.pop_front();
    }
    queue.push_back(value);
}
