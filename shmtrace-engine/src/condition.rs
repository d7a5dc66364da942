//! States of hubs, peers and processes that are findings once they last: the life of each, from suspect to its end.

use std::collections::BTreeMap;

use crate::{
    finding::{Code, State},
    ids::{HubId, LaneId, Mono, PeerId},
};

/// What a state is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) code: Code,
    pub(crate) hub: Option<HubId>,
    pub(crate) peer: Option<PeerId>,
    pub(crate) lane: Option<LaneId>,
}

/// A state that holds.
#[derive(Debug, Clone)]
struct Held {
    id: u64,
    since: Mono,
    seen: u32,
    said: bool,
}

/// A step in the life of a state that is to be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) id: u64,
    pub(crate) state: State,
    pub(crate) lasted: u64,
    pub(crate) count: u64,
}

/// All states that hold now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Conditions {
    held: BTreeMap<Key, Held>,
    counts: BTreeMap<Key, u64>,
}

/// Keys of which the number of findings is remembered at most.
const MOST_COUNTS: usize = 4096;

impl Conditions {
    /// The state was seen to hold. It is said once it was seen `looks` times at least and lasted for `grace`.
    pub(crate) fn holds(
        &mut self,
        key: Key,
        now: Mono,
        looks: u32,
        grace: u64,
        next_id: &mut u64,
    ) -> Option<Said> {
        let held = self.held.entry(key).or_insert_with(|| {
            *next_id += 1;
            Held {
                id: *next_id - 1,
                since: now,
                seen: 0,
                said: false,
            }
        });
        held.seen += 1;
        let lasted = now.since(held.since);
        if held.said || held.seen < looks || lasted < grace {
            return None;
        }
        held.said = true;
        if self.counts.len() >= MOST_COUNTS {
            self.counts.pop_first();
        }
        let count = self.counts.entry(key).or_default();
        *count += 1;
        Some(Said {
            id: held.id,
            state: State::Missed,
            lasted,
            count: *count,
        })
    }

    /// Since when a state holds that was not said yet.
    pub(crate) fn unsaid_since(&self, key: &Key) -> Option<Mono> {
        let held = self.held.get(key).filter(|held| !held.said)?;
        Some(held.since)
    }

    /// The state does not hold (any more); `state` says how it ended.
    pub(crate) fn over(&mut self, key: &Key, now: Mono, state: State) -> Option<Said> {
        let held = self.held.remove(key)?;
        let count = self.counts.get(key).copied().unwrap_or(1);
        held.said.then_some(Said {
            id: held.id,
            state,
            lasted: now.since(held.since),
            count,
        })
    }

    /// Keys of the states that hold, or may.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.held.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key {
        code: Code::RingCorrupt,
        hub: Some(HubId(1)),
        peer: None,
        lane: None,
    };

    #[test]
    fn one_look_or_a_short_time_is_not_enough() {
        let mut next = 7;
        let mut conditions = Conditions::default();
        assert_eq!(
            conditions.holds(KEY, Mono(100), 2, 0, &mut next),
            None,
            "one look"
        );
        assert!(
            conditions.holds(KEY, Mono(101), 2, 0, &mut next).is_some(),
            "two looks"
        );
        let mut conditions = Conditions::default();
        conditions.holds(KEY, Mono(100), 2, 50, &mut next);
        assert_eq!(
            conditions.holds(KEY, Mono(149), 2, 50, &mut next),
            None,
            "short"
        );
        let said = conditions.holds(KEY, Mono(150), 2, 50, &mut next).unwrap();
        assert_eq!((said.id, said.lasted, said.count), (8, 50, 1));
        assert_eq!(
            conditions.holds(KEY, Mono(200), 2, 50, &mut next),
            None,
            "said once"
        );
    }

    #[test]
    fn counts_are_bounded() {
        let mut conditions = Conditions::default();
        let mut next = 0;
        for number in 0..MOST_COUNTS as u32 + 10 {
            let key = Key {
                hub: Some(HubId(number)),
                ..KEY
            };
            let said = conditions.holds(key, Mono(1), 1, 0, &mut next).unwrap();
            assert_eq!(said.count, 1);
            conditions.over(&key, Mono(2), State::Recovered);
        }
        assert_eq!(conditions.counts.len(), MOST_COUNTS);
    }

    #[test]
    fn what_was_not_said_ends_silently() {
        let mut next = 1;
        let mut conditions = Conditions::default();
        conditions.holds(KEY, Mono(0), 2, 10, &mut next);
        assert_eq!(conditions.over(&KEY, Mono(5), State::Recovered), None);
        conditions.holds(KEY, Mono(6), 2, 10, &mut next);
        conditions.holds(KEY, Mono(20), 2, 10, &mut next);
        let over = conditions.over(&KEY, Mono(30), State::Recovered).unwrap();
        assert_eq!(
            (over.id, over.lasted, over.state),
            (2, 24, State::Recovered)
        );
    }
}
