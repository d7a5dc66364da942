//! Which threads of a process serve a lane, and which have nothing to do with it.
//!
//! A process may have a thread that computes for minutes: it must not hide a stuck lane, and a worker that is busy with what
//! it took from the ring must. A thread is a bystander only if all of this holds:
//!
//! * it was never seen at a doorbell, an epoll or a word of the hub, neither by a record nor by a look;
//! * its name is not that of any thread that was (workers of one runtime share their name);
//! * the lane was served often, each time by one thread alone: it took the token, and the ring was empty when it slept.

use std::collections::BTreeSet;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    history::SKEW,
    ids::{Mono, ProcId, Tid},
    input::{ProcessObservation, ThreadObservation, WaitsFor},
};

/// So often must the lane have been served by single threads.
const OFTEN: u32 = 8;
/// Threads remembered at most; beyond that nobody is a bystander any more.
const MOST_THREADS: usize = 4096;

/// Threads that were seen at doorbells, epolls and words of hubs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Servers {
    seen: FxHashSet<(ProcId, Tid)>,
    /// The one seen last: most often it is seen again.
    last: Option<(ProcId, Tid)>,
    /// When each thread last went to sleep.
    slept: FxHashMap<(ProcId, Tid), Mono>,
}

/// How one lane was served so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Service {
    taker: Option<Tid>,
    times: u32,
}

impl Service {
    pub(crate) fn took(&mut self, tid: Tid) {
        self.taker = Some(tid);
    }

    /// A thread of the consumer sleeps; `empty` says that the ring is.
    pub(crate) fn slept(&mut self, tid: Tid, empty: bool) {
        if self.taker.take_if(|taker| *taker == tid).is_some() && empty {
            self.times = self.times.saturating_add(1);
        }
    }
}

impl Servers {
    pub(crate) fn saw(&mut self, proc: ProcId, tid: Tid) {
        if self.last != Some((proc, tid)) && self.seen.len() < MOST_THREADS {
            self.seen.insert((proc, tid));
            self.last = Some((proc, tid));
        }
    }

    pub(crate) fn slept(&mut self, proc: ProcId, tid: Tid, at: Mono) {
        if let Some(last) = self.slept.get_mut(&(proc, tid)) {
            *last = at;
        } else if self.slept.len() < MOST_THREADS {
            self.slept.insert((proc, tid), at);
        }
    }

    /// Whether a thread is known to have gone to sleep by itself after `at`, whatever it did since.
    pub(crate) fn slept_since(&self, proc: ProcId, tid: Tid, at: Mono) -> bool {
        self.slept
            .get(&(proc, tid))
            .is_some_and(|slept| slept.since(at) > SKEW)
    }

    /// A process ended: its pids may be used again.
    pub(crate) fn ended(&mut self, proc: ProcId) {
        self.seen.retain(|(of, _)| *of != proc);
        self.last = None;
        self.slept.retain(|(of, _), _| *of != proc);
    }

    /// The threads of this process that have nothing to do with the lane.
    pub(crate) fn bystanders(&self, process: &ProcessObservation, service: Service) -> Vec<Tid> {
        let Some(proc) = process.proc else {
            return Vec::new();
        };
        if service.times < OFTEN || self.seen.len() >= MOST_THREADS {
            return Vec::new();
        }
        let serves = |thread: &ThreadObservation| {
            self.seen.contains(&(proc, thread.tid))
                || matches!(
                    thread.waits_for,
                    WaitsFor::Doorbell
                        | WaitsFor::OtherFds
                        | WaitsFor::SomeFds
                        | WaitsFor::HubFutex(_)
                )
        };
        let names: BTreeSet<&str> = process
            .threads
            .iter()
            .filter(|thread| serves(thread))
            .map(|thread| thread.name.as_str())
            .collect();
        if names.is_empty() {
            return Vec::new();
        }
        let others = process.threads.iter();
        others
            .filter(|thread| !names.contains(thread.name.as_str()))
            .map(|thread| thread.tid)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(tid: u32, name: &str, waits_for: WaitsFor) -> ThreadObservation {
        ThreadObservation {
            tid: Tid(tid),
            name: name.into(),
            state: 'S',
            syscall: None,
            wchan: None,
            runs: None,
            sleeps: None,
            cpu_ns: None,
            ran_meanwhile: false,
            waits_for,
            stack: None,
        }
    }

    #[test]
    fn with_too_many_threads_to_remember_nobody_is_a_bystander() {
        let proc = ProcId { pid: 1, start: 1 };
        let process = ProcessObservation {
            proc: Some(proc),
            alive: true,
            has_end: None,
            threads: vec![
                thread(1, "worker", WaitsFor::Doorbell),
                thread(2, "other", WaitsFor::Nothing),
            ],
        };
        let service = Service {
            taker: None,
            times: OFTEN,
        };
        let mut servers = Servers::default();
        for tid in 0..MOST_THREADS as u32 - 1 {
            servers.saw(proc, Tid(tid + 10));
            servers.slept(proc, Tid(tid + 10), Mono(1));
        }
        assert_eq!(servers.bystanders(&process, service), [Tid(2)]);
        for tid in 0..10 {
            servers.saw(proc, Tid(tid + (1 << 20)));
            servers.slept(proc, Tid(tid + (1 << 20)), Mono(1));
        }
        assert_eq!(servers.bystanders(&process, service), [Tid(0); 0]);
        assert_eq!(servers.seen.len(), MOST_THREADS);
        assert_eq!(servers.slept.len(), MOST_THREADS);
    }
}
