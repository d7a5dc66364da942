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
    pub(crate) fn remove_first(&mut self) -> Option<Event> {
        match self.sorted.front() {
            Some(first) if self.is_before_late(first) => self.sorted.pop_front(),
            _ => Some(self.late.pop_first()?.1),
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

    fn event(at: u64, arrival: u32) -> Event {
        Event {
            at: Mono(at),
            cpu: 0,
            proc: ProcId { pid: 1, start: 1 },
            tid: Tid(arrival),
            kind: EventKind::Exec,
        }
    }

    fn pop(pending: &mut Pending, until: Mono) -> Option<Event> {
        pending.first_until(until)?;
        pending.remove_first()
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
            for arrival in 0..next(60) {
                // Never before what has been taken out.
                let at = done + next(40);
                let event = event(at, arrival as u32);
                pending.push(&event);
                expected.push(event);
                if next(5) == 0 {
                    // What comes as late as that is not handed in any more.
                    done += next(30);
                    let until = Mono(done.saturating_sub(1));
                    out.extend(std::iter::from_fn(|| pop(&mut pending, until)));
                    let due = expected.iter().filter(|event| event.at <= until).count();
                    assert_eq!(out.len(), due, "all that is due by {done}, nothing else");
                }
                assert_eq!(pending.len(), expected.len() - out.len());
            }
            out.extend(std::iter::from_fn(|| pop(&mut pending, Mono(u64::MAX))));
            // Of equal times what came first comes first.
            expected.sort_by_key(|event| event.at);
            assert_eq!(out, expected);
        }
    }
}
