//! Whether one observation shows a stuck lane, and of which class.

use crate::{
    finding::Code,
    input::{LaneObservation, ThreadObservation, WaitsFor},
};

/// What an observation shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Something moves, or may still move by itself.
    Moving,
    /// Stuck.
    Stuck(Code),
    /// It cannot be told, for this reason.
    Unseen(String),
}

/// Judges an observation.
///
/// `earlier` is an observation of the same head, from before; `announced` says that the records show a ring call which
/// covers the head.
pub(crate) fn shown(
    now: &LaneObservation,
    earlier: Option<&LaneObservation>,
    announced: bool,
) -> Shown {
    if !now.hub_intact {
        return Shown::Unseen(
            "the hub file was replaced, truncated or is not mapped any more".to_owned(),
        );
    }
    if now.before != now.after || now.after.is_empty() {
        return Shown::Moving;
    }
    if now.after.len() > u64::from(now.capacity) || now.after.tail > now.after.head {
        return Shown::Moving; // corrupt, which is another detector's business
    }
    let consumer = &now.consumer;
    if consumer.proc.is_some() && !consumer.alive {
        return Shown::Moving; // dead, which is another detector's business
    }
    if consumer.threads.is_empty() {
        return Shown::Unseen(
            "the consumer's process is not known or cannot be looked into".to_owned(),
        );
    }
    if !consumer.threads.iter().all(is_asleep) || !past_ringing(now, earlier, announced) {
        return Shown::Moving;
    }
    let Some(token) = now.token else {
        let what = now
            .missing
            .first()
            .cloned()
            .unwrap_or_else(|| "the doorbell's queue could not be read".to_owned());
        return Shown::Unseen(what);
    };
    Shown::Stuck(class(now, token))
}

/// The class of a lane on which nothing moves.
fn class(now: &LaneObservation, token: bool) -> Code {
    let listening = now.consumer.threads.iter().any(is_listening);
    // Whoever filled the ring cannot go on; if its signals arrived, want of room is what holds it up.
    let full = now.after.len() == u64::from(now.capacity);
    match (listening, token) {
        (true, false) => Code::MissedWakeup,
        _ if full => Code::RingFull,
        (true, true) => Code::NotDraining,
        (false, _) => Code::ConsumerBlocked,
    }
}

/// Blocked in a wait, and was throughout the observation. Stopped, runnable, disk sleep: not asleep.
fn is_asleep(thread: &ThreadObservation) -> bool {
    matches!(thread.state, 'S' | 'Z' | 'X') && !thread.ran_meanwhile
}

/// Waits for fds, so that a token could wake it.
fn is_listening(thread: &ThreadObservation) -> bool {
    matches!(
        thread.waits_for,
        WaitsFor::Doorbell | WaitsFor::OtherFds | WaitsFor::SomeFds
    )
}

/// No wakeup is still to come: whoever published is past its ring call, asleep or dead.
fn past_ringing(now: &LaneObservation, earlier: Option<&LaneObservation>, announced: bool) -> bool {
    if announced || (now.producer.proc.is_some() && !now.producer.alive) {
        return true;
    }
    now.producer.threads.iter().all(|thread| {
        is_asleep(thread)
            || earlier.is_some_and(|earlier| {
                // It gave up the CPU by itself since the head was first seen.
                let then = earlier
                    .producer
                    .threads
                    .iter()
                    .find(|then| then.tid == thread.tid);
                then.is_some_and(|then| thread.sleeps > then.sleeps)
            })
    })
}

/// Whether no thread of the consumer ran between two observations; `None` if that cannot be told.
pub(crate) fn slept_between(then: &LaneObservation, now: &LaneObservation) -> Option<bool> {
    if then.consumer.threads.len() != now.consumer.threads.len() {
        return Some(false);
    }
    let mut all = true;
    for thread in &now.consumer.threads {
        let Some(before) = then
            .consumer
            .threads
            .iter()
            .find(|before| before.tid == thread.tid)
        else {
            return Some(false);
        };
        all &= match (before.runs, thread.runs) {
            (Some(before), Some(now)) => before == now,
            _ => before.sleeps? == thread.sleeps?,
        };
    }
    Some(all)
}
