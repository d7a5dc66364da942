//! Events in the order of their times.
//!
//! The daemon hands over what all CPUs have in that order already. What was still being written then comes later than it
//! belongs, and is kept apart until its turn has come.

use std::collections::{BTreeMap, VecDeque};

use crate::{ids::Mono, input::Event};

/// Events that wait for their turn.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// Those that came in order.
    sorted: VecDeque<Event>,
    /// Those that came after a later one, by their times, and of equal times by their arrival.
    late: BTreeMap<(Mono, u64), Event>,
    /// Late ones so far.
    number: u64,
}

impl Pending {
    pub(crate) fn len(&self) -> usize {
        self.sorted.len() + self.late.len()
    }

    pub(crate) fn push(&mut self, event: &Event) {
        if self.sorted.back().is_none_or(|last| last.at <= event.at) {
            self.sorted.push_back(*event);
        } else {
            self.number += 1;
            self.late.insert((event.at, self.number), *event);
        }
    }

    /// The first event of all, if it happened by `until`.
    pub(crate) fn first_until(&self, until: Mono) -> Option<&Event> {
        let first = match self.sorted.front() {
            Some(first) if self.is_before_late(first) => first,
            _ => self.late.first_key_value()?.1,
        };
        (first.at <= until).then_some(first)
    }

    /// Removes the first event of all.
    pub(crate) fn remove_first(&mut self) {
        match self.sorted.front() {
            Some(first) if self.is_before_late(first) => drop(self.sorted.pop_front()),
            _ => drop(self.late.pop_first()),
        }
    }

    /// Whether its turn comes before that of all late ones. Those of one CPU come in order, so what is as old came later.
    fn is_before_late(&self, event: &Event) -> bool {
        let late = self.late.first_key_value();
        late.is_none_or(|((at, _), _)| event.at <= *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{ProcId, Tid},
        input::EventKind,
    };

    fn event(at: u64, cpu: u16) -> Event {
        let (proc, tid) = (ProcId { pid: 1, start: 1 }, Tid(1));
        let (at, kind) = (Mono(at), EventKind::Exec);
        Event {
            at,
            cpu,
            proc,
            tid,
            kind,
        }
    }

    fn pop(pending: &mut Pending, until: u64) -> Option<Event> {
        let first = pending.first_until(Mono(until)).copied();
        if first.is_some() {
            pending.remove_first();
        }
        first
    }

    /// Numbers without a pattern, the same in each run.
    fn numbers() -> impl Iterator<Item = u64> {
        std::iter::successors(Some(88_172_645_463_325_252_u64), |last| {
            let mut next = *last;
            next ^= next << 13;
            next ^= next >> 7;
            next ^= next << 17;
            Some(next)
        })
    }

    #[test]
    fn whatever_the_order_of_arrival_they_come_out_sorted() {
        let mut numbers = numbers();
        let mut next = move |below: u64| numbers.next().unwrap() % below;
        for _ in 0..300 {
            let mut pending = Pending::default();
            let (mut expected, mut out) = (Vec::new(), Vec::new());
            let mut done = 0;
            for _ in 0..next(60) {
                // Never before what has been taken out.
                let at = done + next(40);
                pending.push(&event(at, next(4) as u16));
                expected.push(at);
                if next(5) == 0 {
                    done += next(30);
                    out.extend(std::iter::from_fn(|| pop(&mut pending, done)));
                    let due = expected.iter().filter(|at| **at <= done).count();
                    assert_eq!(
                        out.len(),
                        due,
                        "all that is due by {done}, and nothing else"
                    );
                }
                assert_eq!(pending.len(), expected.len() - out.len());
            }
            out.extend(std::iter::from_fn(|| pop(&mut pending, u64::MAX)));
            expected.sort_unstable();
            let out: Vec<u64> = out.iter().map(|event| event.at.0).collect();
            assert_eq!(out, expected);
        }
    }
}
