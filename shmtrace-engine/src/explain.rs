//! Findings in plain words.

use crate::{
    Cause, Code, Direction, Finding,
    input::{Indexes, PeerBinding},
};

/// One or two sentences about a finding, with what to look at next.
pub(crate) fn sentence(finding: &Finding, peer: Option<&PeerBinding>) -> String {
    let name = peer.map_or("", |peer| peer.name.as_str());
    let plugin = match (finding.peer, name) {
        (Some(id), "") => format!("peer {}", id.0),
        (Some(id), name) => format!("{name} (peer {})", id.0),
        (None, _) => "the peer".to_owned(),
    };
    let (producer, consumer) = match finding.lane.map(|lane| lane.direction) {
        Some(Direction::ToHost) => (plugin.clone(), "the host".to_owned()),
        _ => ("the host".to_owned(), plugin.clone()),
    };
    let waiting = finding.ring.map_or(0, Indexes::len);
    let entries = if waiting == 1 {
        "1 entry waits".to_owned()
    } else {
        format!("{waiting} entries wait")
    };
    match (finding.code, finding.cause) {
        (Code::MissedWakeup, cause) => {
            let why = cause.map_or("", |cause| cause_words(cause));
            let why = why
                .replace("{consumer}", &consumer)
                .replace("{producer}", &producer);
            format!("{entries} for {consumer}, which sleeps without a signal to wake it. {why}")
                .trim_end()
                .to_owned()
        }
        (Code::NotDraining, _) => format!(
            "{entries} and a token is queued for {consumer}, which sleeps all the same: its epoll was not told. Look whether \
             the doorbell is still registered, and whether readiness is cleared without a read that saw EWOULDBLOCK."
        ),
        (Code::ConsumerBlocked, _) => format!(
            "{entries} for {consumer}, whose threads all sit in calls that no doorbell can end. Look for a blocking call on the \
             runtime's thread: the threads above name it."
        ),
        (Code::RingFull, _) => format!(
            "The ring to {consumer} is full and {producer} waits for space, but {consumer} is blocked. Look at what blocks it."
        ),
        (code, _) => code.in_short().to_owned(),
    }
}

fn cause_words(cause: Cause) -> &'static str {
    match cause {
        Cause::ConsumedThenSlept => {
            "{consumer} took the token and slept without looking at the ring again: look at the order of drain and dequeue, and at \
             where readiness is cleared."
        }
        Cause::RungBeforePublish => {
            "{producer} rang before it published: {consumer} looked, found nothing and slept. Publish first, then ring."
        }
        Cause::NeverRung => {
            "{producer} published and did not ring: look at what returns or fails between the two."
        }
        Cause::RingFailed => {
            "The ring call of {producer} failed, so the signal was lost: see its error in the timeline. If there is none, {producer} no \
             longer has its end of the doorbell open: look for who closed it."
        }
        Cause::WrongDoorbell => {
            "{producer} rang another peer's doorbell instead: look for a mix-up of peers."
        }
        Cause::Stolen => {
            "Somebody else took the token: look for an inherited or duplicated doorbell fd (close-on-exec, host's copy not closed)."
        }
        Cause::Unknown => {
            "Why is not known, since the records do not reach back: watch from the start to learn it."
        }
    }
}

impl Code {
    /// One line on what a finding of this class says.
    pub const fn in_short(self) -> &'static str {
        match self {
            Self::MissedWakeup => {
                "An entry lies in a ring, its consumer sleeps, and no signal is on its way."
            }
            Self::NotDraining => "A token is queued on the doorbell of a sleeping consumer.",
            Self::ConsumerBlocked => "The consumer's runtime thread sits in another system call.",
            Self::NeverEnqueued => "Everybody waits, and nothing is open or queued.",
            Self::Unanswered => "A request was taken and never answered.",
            Self::RingFull => "A full ring, whose consumer is blocked.",
            Self::SlotsStuck => "Slots that nobody will free.",
            Self::RingCorrupt => "The indexes or entries of a ring do not hold together.",
            Self::PeerDied => "A process is gone and left things behind.",
            Self::Starved => "A thread was woken and is hardly ever run.",
            Self::MemoryLimit => "The memory limit was reached.",
        }
    }
}
