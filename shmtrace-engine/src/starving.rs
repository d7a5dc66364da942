//! Threads that want to run and hardly ever do.

use std::collections::BTreeMap;

use crate::{
    ids::{Mono, Tid},
    input::{LaneObservation, ThreadObservation},
};

/// A wait for a CPU of this length is no ordinary scheduling, ns: CPU quotas hold a group back for 100 ms at a time, and
/// four busy loops on two CPUs delay a thread by less than that.
const LONG_WAIT: u64 = 250_000_000;
/// A thread that spends most of this long in such waits is starved, ns.
const STARVED: u64 = 1_000_000_000;
/// What is older than this counts half, and half of that again, ns: a thread that is run at last soon shows it.
const MEMORY: u64 = 4_000_000_000;
/// The share of the time that a starved thread is on a CPU at most, as a divisor: an idle class or an exhausted quota
/// leaves it some milliseconds a second.
const SHARE: u64 = 100;

/// The waits of a lane's consumer for a CPU, thread by thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct Starving {
    threads: BTreeMap<Tid, Waits>,
}

/// How badly a thread starves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Starved {
    /// The time looked at, ns.
    pub(crate) lasted: u64,
    /// On a CPU meanwhile, ns.
    pub(crate) ran: u64,
    /// It is in a long wait now.
    pub(crate) waits: bool,
}

/// The long waits of a thread in the time that is looked at.
#[derive(Debug, Clone)]
struct Waits {
    since: Mono,
    /// Time on a CPU up to `since`, ns.
    cpu_ns: u64,
    /// Spent in long waits that are over, ns.
    over: u64,
    /// The wait that goes on.
    present: Option<Wait>,
}

/// It was runnable at each look, and did not run from one to the next.
#[derive(Debug, Clone, Copy)]
struct Wait {
    from: Mono,
    to: Mono,
    runs: u64,
    cpu_ns: u64,
}

impl Starving {
    /// Takes in what was seen of the consumer; the thread that starves most, if one does.
    pub(crate) fn observe(
        &mut self,
        seen: &LaneObservation,
        bystanders: &[Tid],
    ) -> Option<Starved> {
        let threads = &seen.consumer.threads;
        self.threads
            .retain(|tid, _| threads.iter().any(|thread| thread.tid == *tid));
        threads
            .iter()
            .filter(|thread| !bystanders.contains(&thread.tid))
            .filter_map(|thread| {
                let (runs, cpu_ns) = (thread.runs?, thread.cpu_ns?);
                self.threads
                    .entry(thread.tid)
                    .or_insert_with(|| Waits::from(seen.begun, cpu_ns))
                    .observe(seen, thread, runs, cpu_ns)
            })
            .max_by_key(|starved| (starved.waits, starved.lasted))
    }
}

impl Waits {
    fn from(since: Mono, cpu_ns: u64) -> Self {
        Self {
            since,
            cpu_ns,
            over: 0,
            present: None,
        }
    }

    fn observe(
        &mut self,
        seen: &LaneObservation,
        thread: &ThreadObservation,
        runs: u64,
        cpu_ns: u64,
    ) -> Option<Starved> {
        let now = seen.finished;
        match &mut self.present {
            Some(wait) if thread.state == 'R' && (wait.runs, wait.cpu_ns) == (runs, cpu_ns) => {
                wait.to = now;
            }
            _ => {
                self.over += self.long();
                self.present = (thread.state == 'R').then_some(Wait {
                    from: seen.begun,
                    to: now,
                    runs,
                    cpu_ns,
                });
            }
        }
        let lasted = now.since(self.since);
        let ran = cpu_ns.saturating_sub(self.cpu_ns);
        let mostly_waits = 2 * (self.over + self.long()) >= lasted;
        if ran > lasted / SHARE || lasted >= 2 * LONG_WAIT && !mostly_waits {
            // It runs like any other, or has nothing to do: what counts begins with the wait that goes on.
            *self = Self {
                present: self.present,
                ..Self::from(self.present.map_or(now, |wait| wait.from), cpu_ns)
            };
            return None;
        }
        if lasted > MEMORY {
            self.since = self.since.plus(lasted / 2);
            self.cpu_ns += ran / 2;
            self.over /= 2;
        }
        (lasted >= STARVED).then_some(Starved {
            lasted,
            ran,
            waits: self.long() > 0,
        })
    }

    /// The length of the wait that goes on, once it is a long one, ns.
    fn long(&self) -> u64 {
        let length = |wait: Wait| wait.to.since(wait.from.max(self.since));
        self.present
            .map(length)
            .filter(|length| *length >= LONG_WAIT)
            .unwrap_or_default()
    }
}
