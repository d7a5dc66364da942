//! Every state that can be reached, with one shortest way to it.

use std::collections::BTreeMap;

use crate::protocol::{Record, Setup, World};

/// All states of a setup, in the order in which they were found.
pub(crate) struct Space {
    pub(crate) states: Vec<World>,
    /// For each state the one before it and the record between the two.
    before: Vec<Option<(usize, Record)>>,
    /// Steps that do not come from outside, for each state.
    inner: Vec<Vec<usize>>,
    /// All steps into each state.
    into: Vec<Vec<(usize, Record)>>,
}

impl Space {
    /// Explores all there is.
    pub(crate) fn explore(setup: Setup) -> Self {
        let mut space = Self {
            states: vec![World::start()],
            before: vec![None],
            inner: Vec::new(),
            into: vec![Vec::new()],
        };
        let mut known = BTreeMap::from([(World::start(), 0)]);
        while space.inner.len() < space.states.len() {
            let from = space.inner.len();
            let mut inner = Vec::new();
            for step in space.states[from].steps(setup) {
                let to = *known.entry(step.after).or_insert_with(|| {
                    space.states.push(step.after);
                    space.before.push(Some((from, step.record)));
                    space.into.push(Vec::new());
                    space.states.len() - 1
                });
                space.into[to].push((from, step.record));
                if !step.outside {
                    inner.push(to);
                }
            }
            space.inner.push(inner);
        }
        space
    }

    /// The way from the start to a state: each step's record and the state after it.
    pub(crate) fn way_to(&self, state: usize) -> Vec<(Record, World)> {
        let mut way = Vec::new();
        let mut at = state;
        while let Some((before, record)) = self.before[at] {
            way.push((record, self.states[at]));
            at = before;
        }
        way.reverse();
        way
    }

    /// Ways from the start to a state: one for each of its last steps, with the shortest way there.
    pub(crate) fn ways_to(&self, state: usize) -> Vec<Vec<(Record, World)>> {
        let into = self.into[state].iter().map(|(from, record)| {
            let mut way = self.way_to(*from);
            way.push((*record, self.states[state]));
            way
        });
        into.collect()
    }

    /// For each state: what is going on inside the lane may still take an entry out of the ring. Computed backwards from
    /// the steps that do, which knows nothing of sleep and tokens.
    pub(crate) fn may_progress(&self) -> Vec<bool> {
        let mut may: Vec<bool> = (0..self.states.len())
            .map(|from| {
                let takes = |to: &usize| self.states[*to].tail > self.states[from].tail;
                self.inner[from].iter().any(takes)
            })
            .collect();
        loop {
            let more: Vec<usize> = (0..may.len())
                .filter(|from| !may[*from] && self.inner[*from].iter().any(|to| may[*to]))
                .collect();
            if more.is_empty() {
                return may;
            }
            for from in more {
                may[from] = true;
            }
        }
    }
}
