//! Why a wakeup was missed: read off the lane's history, or `unknown`.
//!
//! Never guessed: where two causes would explain what is seen, or something is missing, the answer is `unknown`.

use crate::{
    finding::Cause,
    history::{History, Ring, SKEW, Take},
    ids::{Mono, ProcId, Tid},
    input::Indexes,
};

/// A ring call and the publish that should have come before it lie less than this apart, ns: with no ring on record at
/// all, one from before the records began may have been meant for the entry.
const RING_APART: u64 = 250_000_000;

/// A cause, and who acted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) cause: Cause,
    pub(crate) culprit: Option<(ProcId, Tid)>,
}

/// What the cause is judged by.
pub(crate) struct Case<'a> {
    /// The lane's history.
    pub(crate) history: &'a History,
    /// The stuck ring.
    pub(crate) ring: Indexes,
    /// The consumer's process.
    pub(crate) consumer: Option<ProcId>,
    /// Rings on other lanes of the same producer that announced nothing: who, when, on which lane.
    pub(crate) strays: &'a [Ring],
    /// Those of which it cannot be told whether they announced anything.
    pub(crate) doubtful: &'a [Ring],
    /// The consumer's process may take tokens in ways that leave no record.
    pub(crate) blind: bool,
    /// The producer is alive and has no fd of its end of the doorbell: whatever it sends there fails with EBADF, or goes to
    /// what took the fd's place.
    pub(crate) end_closed: bool,
    /// A send on an fd that was no socket at that time would have left no record.
    pub(crate) failed_sends_unseen: bool,
}

/// The cause of a stuck state.
pub(crate) fn judge(case: &Case<'_>) -> Verdict {
    let history = case.history;
    let blind = history
        .rings
        .iter()
        .any(|ring| ring.signalled() && ring.head.is_none());
    if !history.covers(case.ring.tail) || blind {
        return unknown();
    }
    let covers = |ring: &&Ring| ring.head.is_some_and(|head| head >= case.ring.head);
    if let Some(ring) = history
        .rings
        .iter()
        .rev()
        .filter(|ring| ring.signalled())
        .find(covers)
    {
        return signalled(case, ring);
    }
    // A failed call may be on a socket whose indexes could not be told: then its time must do.
    let published_after = history.before_publish.map_or(Mono(0), |seen| seen.at);
    let failed = history.rings.iter().rev().find(|ring| {
        !ring.signalled()
            && ring
                .head
                .map_or(ring.at >= published_after, |head| head >= case.ring.head)
    });
    match failed {
        Some(ring) => Verdict {
            cause: Cause::RingFailed,
            culprit: Some((ring.proc, ring.tid)),
        },
        None => unannounced(case),
    }
}

/// A signal was given for what lies in the ring, and no token is left: who took it?
fn signalled(case: &Case<'_>, ring: &Ring) -> Verdict {
    // An earlier signal may still have been queued, so any take after the first signal for these entries counts.
    let since = case
        .history
        .rings
        .iter()
        .find(|ring| ring.signalled() && ring.head.is_some_and(|head| head > case.ring.tail))
        .map_or(ring.at, |first| first.at);
    let takes: Vec<&Take> = case
        .history
        .takes
        .iter()
        .filter(|take| take.at.plus(SKEW) >= since)
        .collect();
    let last_of = |own: bool| {
        takes
            .iter()
            .rev()
            .find(|take| {
                case.consumer
                    .is_none_or(|consumer| (take.proc == consumer) == own)
            })
            .copied()
    };
    // The token of the last signal is the one that is missing: whoever took last took it.
    match (last_of(true), last_of(false)) {
        (_, Some(thief)) if case.consumer.is_some() && !taken_later(last_of(true), thief) => {
            Verdict {
                cause: Cause::Stolen,
                culprit: Some((thief.proc, thief.tid)),
            }
        }
        (Some(own), _) if own.at.plus(SKEW) >= ring.at => match case.history.vanished() {
            // There were more tokens than takes: the last one went elsewhere.
            Some(true) if !case.blind => Verdict {
                cause: Cause::Stolen,
                culprit: None,
            },
            // It may have been the token of an earlier signal.
            None if own.at < ring.at => unknown(),
            // The head is read at a call's return, and an entry may be published after the signal and before that. A
            // token that was taken before the entry was there was no signal for it.
            _ if own.head.is_none_or(|head| head < case.ring.head) => unknown(),
            _ => Verdict {
                cause: Cause::ConsumedThenSlept,
                culprit: Some((own.proc, own.tid)),
            },
        },
        // Queued, gone, and nobody in the tree took it.
        (None, None) if ring.result > 0 && !case.blind => Verdict {
            cause: Cause::Stolen,
            culprit: None,
        },
        _ => unknown(),
    }
}

fn taken_later(own: Option<&Take>, thief: &Take) -> bool {
    own.is_some_and(|own| own.at > thief.at)
}

/// No signal covers the head: the producer did not ring after it published.
fn unannounced(case: &Case<'_>) -> Verdict {
    let published_after = case.history.before_publish.map_or(Mono(0), |seen| seen.at);
    // A signal on another peer's doorbell that had nothing to announce there.
    if let Some(stray) = case
        .strays
        .iter()
        .rev()
        .find(|stray| stray.at >= published_after)
    {
        return Verdict {
            cause: Cause::WrongDoorbell,
            culprit: Some((stray.proc, stray.tid)),
        };
    }
    if case.doubtful.iter().any(|ring| ring.at >= published_after) {
        return unknown();
    }
    let history = case.history;
    let Some(last) = history.complete_rings().next_back() else {
        return if published_after.since(history.complete_since) >= RING_APART {
            Verdict {
                cause: no_ring(case),
                culprit: None,
            }
        } else {
            unknown()
        };
    };
    let culprit = Some((last.proc, last.tid));
    let surplus = history.surplus(history.rings.len() - 1);
    let alone = history.complete_rings().all(|ring| ring.tid == last.tid);
    let cause = match surplus.least {
        // The last signal announced nothing that had not been announced, and then the head moved.
        1.. if !surplus.announced => {
            if surplus.sure {
                Cause::RungBeforePublish
            } else {
                Cause::Unknown
            }
        }
        // One ring for several entries is normal here, so a superfluous one may mean anything.
        ..=-1 if !surplus.announced => Cause::Unknown,
        // Somewhere among the signals of several threads was one too many: it may have been meant for this entry.
        _ if !alone && surplus.lately => Cause::Unknown,
        // Two producers that publish, publish, ring and ring: the second ring has nothing new to say either.
        _ => no_ring(case),
    };
    Verdict { cause, culprit }
}

/// The producer published and no signal is on record: it gave none, or could not.
fn no_ring(case: &Case<'_>) -> Cause {
    if case.end_closed {
        Cause::RingFailed
    } else if case.failed_sends_unseen {
        Cause::Unknown
    } else {
        Cause::NeverRung
    }
}

/// The answer where anything is missing.
pub(crate) fn unknown() -> Verdict {
    Verdict {
        cause: Cause::Unknown,
        culprit: None,
    }
}
