//! Events in the order of their times.
//!
//! The records of one CPU come in order, so those of all CPUs only have to be merged; what comes out of order all the same
//! is put where it belongs.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque, binary_heap::PeekMut},
};

use crate::{ids::Mono, input::Event};

/// Events that wait for their turn.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// One queue for each CPU, oldest event first.
    cpus: Vec<VecDeque<Event>>,
    /// When each queue's first event happened. An event that was put before the first one makes a second entry for its
    /// queue; the other is out of date then and is passed over.
    firsts: BinaryHeap<Reverse<(Mono, u16)>>,
    len: usize,
}

impl Pending {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push(&mut self, event: Event) {
        let (at, cpu) = (event.at, event.cpu);
        if self.cpus.len() <= usize::from(cpu) {
            self.cpus.resize_with(usize::from(cpu) + 1, VecDeque::new);
        }
        let queue = &mut self.cpus[usize::from(cpu)];
        self.len += 1;
        if queue.back().is_some_and(|last| last.at <= at) {
            queue.push_back(event);
            return;
        }
        let place = queue.partition_point(|before| before.at <= at);
        queue.insert(place, event);
        if place == 0 {
            self.firsts.push(Reverse((at, cpu)));
        }
    }

    /// The first event of all, if it happened by `until`.
    pub(crate) fn pop_until(&mut self, until: Mono) -> Option<Event> {
        loop {
            let mut first = self.firsts.peek_mut()?;
            let Reverse((at, cpu)) = *first;
            let queue = &mut self.cpus[usize::from(cpu)];
            if queue.front().is_none_or(|event| event.at != at) {
                PeekMut::pop(first);
                continue;
            }
            if at > until {
                return None;
            }
            let event = queue.pop_front();
            match queue.front() {
                Some(next) => *first = Reverse((next.at, cpu)),
                None => drop(PeekMut::pop(first)),
            }
            self.len -= 1;
            return event;
        }
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
                pending.push(event(at, next(4) as u16));
                expected.push(at);
                if next(5) == 0 {
                    done += next(30);
                    out.extend(std::iter::from_fn(|| pending.pop_until(Mono(done))));
                    let due = expected.iter().filter(|at| **at <= done).count();
                    assert_eq!(
                        out.len(),
                        due,
                        "all that is due by {done}, and nothing else"
                    );
                }
                assert_eq!(pending.len(), expected.len() - out.len());
            }
            out.extend(std::iter::from_fn(|| pending.pop_until(Mono(u64::MAX))));
            expected.sort_unstable();
            let out: Vec<u64> = out.iter().map(|event| event.at.0).collect();
            assert_eq!(out, expected);
        }
    }
}
