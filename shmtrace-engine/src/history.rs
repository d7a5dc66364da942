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
}

impl History {
    /// Something may be missing before `at`.
    pub(crate) fn incomplete_until(&mut self, at: Mono) {
        if at > self.complete_since {
            self.complete_since = at;
            self.first_seen = None;
            self.before_publish = None;
            self.last_seen = None;
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
        push(&mut self.rings, ring, MOST_CALLS);
    }

    pub(crate) fn took(&mut self, take: Take) {
        push(&mut self.takes, take, MOST_CALLS);
    }

    pub(crate) fn event(&mut self, event: &Event) {
        push(&mut self.events, event.clone(), MOST_EVENTS);
    }

    /// How many signals too many there were up to the ring with this index, which itself announced nothing new; `None` if
    /// it did announce something.
    ///
    /// Counted from each earlier ring on, and the smallest taken: a window that begins between two producers' rings
    /// counts one too many.
    pub(crate) fn surplus(&self, index: usize) -> Option<i64> {
        let ring = self.rings.get(index)?;
        let head = ring.head?;
        let first = self
            .first_seen
            .filter(|first| first.at <= self.rings[0].at)
            .map(|first| (0, first.ring.head));
        let starts = (0..index).filter_map(|start| Some((start + 1, self.rings[start].head?)));
        let mut smallest: Option<i64> = None;
        let mut announced = true;
        for (from, start_head) in first.into_iter().chain(starts) {
            let rings = i64::try_from(index + 1 - from).unwrap_or(i64::MAX);
            let entries = i64::try_from(head.saturating_sub(start_head)).unwrap_or(i64::MAX);
            smallest = Some(smallest.map_or(rings - entries, |least| least.min(rings - entries)));
            announced = entries > 0;
        }
        // After the loop `announced` speaks of the ring just before.
        smallest.filter(|_| !announced)
    }

    /// Whether every publish of the entries from `tail` on happened while the records were complete.
    pub(crate) fn covers(&self, tail: u64) -> bool {
        self.first_seen.is_some_and(|first| first.ring.head <= tail)
    }
}

fn push<T>(queue: &mut VecDeque<T>, value: T, most: usize) {
    if queue.len() == most {
        queue.pop_front();
    }
    queue.push_back(value);
}
