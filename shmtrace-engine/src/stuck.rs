//! Whether one observation shows a stuck lane, and of which class.

use crate::{
    Direction,
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

/// What the records say about threads.
pub(crate) struct Known<'a> {
    /// A ring call is on record that covers the head.
    pub(crate) announced: bool,
    /// This thread of the producer rang for the head, or slept since it is there, or never rings.
    pub(crate) past_ringing: &'a dyn Fn(&ThreadObservation) -> bool,
    /// This thread of the consumer has nothing to do with the lane.
    pub(crate) bystander: &'a dyn Fn(&ThreadObservation) -> bool,
    /// The lane's plugin has ended, and nobody is known to have taken its place.
    pub(crate) plugin_left: bool,
}

/// Judges an observation.
pub(crate) fn shown(now: &LaneObservation, known: &Known<'_>) -> Shown {
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
    let left = |end: Direction| known.plugin_left && now.lane.direction == end;
    if consumer.threads.is_empty() {
        if left(Direction::ToPeer) {
            return Shown::Moving; // dead, too
        }
        return Shown::Unseen(
            "the consumer's process is not known or cannot be looked into".to_owned(),
        );
    }
    let producer = &now.producer;
    let gone = match producer.proc {
        Some(_) => !producer.alive,
        None => left(Direction::ToHost) && producer.threads.is_empty(),
    };
    if producer.threads.is_empty() && !gone && !known.announced {
        return Shown::Unseen(
            "the producer's process is not known or cannot be looked into".to_owned(),
        );
    }
    let asleep = |thread: &ThreadObservation| is_asleep(thread) || (known.bystander)(thread);
    if !consumer.threads.iter().all(asleep) {
        return Shown::Moving;
    }
    if !gone && !past_ringing(now, known.past_ringing) {
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
    match class(now, token) {
        // That no doorbell can end a sleep is known only of sleeps that are known.
        Code::ConsumerBlocked | Code::RingFull if !consumer.threads.iter().all(is_explained) => {
            Shown::Unseen("what the consumer's threads wait for could not be read".to_owned())
        }
        code => Shown::Stuck(code),
    }
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

/// Blocked in a wait, and was throughout the observation. Stopped, frozen, runnable, disk sleep: not asleep.
fn is_asleep(thread: &ThreadObservation) -> bool {
    matches!(thread.state, 'S' | 'Z' | 'X') && !thread.ran_meanwhile && !is_frozen(thread)
}

/// Held by the freezer of its cgroup (`do_freezer_trap`), which shows as state S whatever the thread was about to do.
fn is_frozen(thread: &ThreadObservation) -> bool {
    thread
        .wchan
        .as_deref()
        .is_some_and(|name| name.contains("freeze"))
}

/// It is known what the thread waits for, or it waits for nothing any more.
fn is_explained(thread: &ThreadObservation) -> bool {
    thread.state != 'S' || thread.waits_for != WaitsFor::Nothing
}

/// Waits for fds, so that a token could wake it.
fn is_listening(thread: &ThreadObservation) -> bool {
    matches!(
        thread.waits_for,
        WaitsFor::Doorbell | WaitsFor::OtherFds | WaitsFor::SomeFds
    )
}

/// No wakeup is still to come: whoever published is past its ring call, asleep or dead.
///
/// Which thread published is not known, so it must be so for every one of them that could have. That a thread's count of
/// sleeps grew says nothing: a stop is counted too, and a thread can be stopped between publish and ring.
fn past_ringing(now: &LaneObservation, past: &dyn Fn(&ThreadObservation) -> bool) -> bool {
    now.producer
        .threads
        .iter()
        .all(|thread| is_asleep(thread) || past(thread))
}

/// Whether no thread of the consumer but bystanders ran between two observations; `None` if that cannot be told.
pub(crate) fn slept_between(
    then: &LaneObservation,
    now: &LaneObservation,
    bystander: &dyn Fn(&ThreadObservation) -> bool,
) -> Option<bool> {
    let serving = |thread: &&ThreadObservation| !bystander(thread);
    let number = |seen: &LaneObservation| seen.consumer.threads.iter().filter(serving).count();
    if number(then) != number(now) {
        return Some(false);
    }
    let mut all = true;
    for thread in now.consumer.threads.iter().filter(serving) {
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
