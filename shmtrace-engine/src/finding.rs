//! What the engine says: findings, and requests for a closer look.

use crate::ids::{HubId, LaneId, Mono, PeerId, ProcId, Tid};
use crate::input::{Event, Indexes, ThreadObservation};

/// Something the engine wants done or said.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Look and answer with an [`Input`](crate::input::Input).
    Request(Request),
    /// A finding began or changed its state.
    Finding(Box<Finding>),
}

/// A look that the engine asks for; the answer may come late or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Request {
    /// Observe one lane in full.
    ObserveLane(LaneId),
    /// The same, with the stacks of the threads that sleep: a verdict may follow.
    ObserveClosely(LaneId),
    /// Observe slots, descriptors and peers of a hub.
    ObserveHub(HubId),
    /// Observe the memory limits of the tree.
    ObserveMemory,
}

/// Class of a finding; the names are those of scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// The stuck state: the doorbell's signal was lost.
    MissedWakeup,
    /// A token is queued, and the consumer sleeps in epoll all the same.
    NotDraining,
    /// The consumer's runtime thread sits in another system call.
    ConsumerBlocked,
    /// Quiet although progress is expected, nothing open, nothing queued.
    NeverEnqueued,
    /// A request left its ring and no response came.
    Unanswered,
    /// Backpressure stall.
    RingFull,
    /// Slots that nobody will free.
    SlotsStuck,
    /// The single-producer or index rules are broken.
    RingCorrupt,
    /// A process is gone and left things behind.
    PeerDied,
    /// Woken and runnable, but not run.
    Starved,
    /// The memory limit was hit.
    MemoryLimit,
}

impl Code {
    /// Every class, in the order of the documentation.
    pub const ALL: [Self; 11] = [
        Self::MissedWakeup,
        Self::NotDraining,
        Self::ConsumerBlocked,
        Self::NeverEnqueued,
        Self::Unanswered,
        Self::RingFull,
        Self::SlotsStuck,
        Self::RingCorrupt,
        Self::PeerDied,
        Self::Starved,
        Self::MemoryLimit,
    ];

    /// The name in NDJSON and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MissedWakeup => "missed-wakeup",
            Self::NotDraining => "not-draining",
            Self::ConsumerBlocked => "consumer-blocked",
            Self::NeverEnqueued => "never-enqueued",
            Self::Unanswered => "unanswered",
            Self::RingFull => "ring-full",
            Self::SlotsStuck => "slots-stuck",
            Self::RingCorrupt => "ring-corrupt",
            Self::PeerDied => "peer-died",
            Self::Starved => "starved",
            Self::MemoryLimit => "memory-limit",
        }
    }
}

/// Why a wakeup was missed, where the events show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The consumer took the token and slept with entries unseen.
    ConsumedThenSlept,
    /// The producer rang before it published.
    RungBeforePublish,
    /// The producer published and never rang.
    NeverRung,
    /// The ring call failed.
    RingFailed,
    /// Another peer's doorbell was rung.
    WrongDoorbell,
    /// Somebody who is not the consumer took the token.
    Stolen,
    /// The history is not there.
    Unknown,
}

impl Cause {
    /// It is concluded from a record that is not there.
    pub(crate) const fn is_an_absence(self) -> bool {
        matches!(
            self,
            Self::NeverRung | Self::RungBeforePublish | Self::WrongDoorbell
        )
    }

    /// Every cause, in the order of the documentation.
    pub const ALL: [Self; 7] = [
        Self::ConsumedThenSlept,
        Self::RungBeforePublish,
        Self::NeverRung,
        Self::RingFailed,
        Self::WrongDoorbell,
        Self::Stolen,
        Self::Unknown,
    ];

    /// The name in NDJSON and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConsumedThenSlept => "consumed-then-slept",
            Self::RungBeforePublish => "rung-before-publish",
            Self::NeverRung => "never-rung",
            Self::RingFailed => "ring-failed",
            Self::WrongDoorbell => "wrong-doorbell",
            Self::Stolen => "stolen",
            Self::Unknown => "unknown",
        }
    }
}

/// Where a finding is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Seen once; the grace runs.
    Suspect,
    /// Proven: unchanged for the grace.
    Missed,
    /// Healed by an unrelated signal before the grace was over.
    Masked,
    /// Healed after it was proven.
    Recovered,
    /// A process that it concerned ended.
    Ended,
    /// Something could not be seen, so nothing is claimed.
    Inconclusive,
}

impl State {
    /// The name in NDJSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Suspect => "suspect",
            Self::Missed => "missed",
            Self::Masked => "masked",
            Self::Recovered => "recovered",
            Self::Ended => "ended",
            Self::Inconclusive => "inconclusive",
        }
    }
}

/// One finding at one point of its life.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// Number of the finding, from 1; stays the same over its life.
    pub id: u64,
    /// When this state was reached.
    pub at: Mono,
    /// Class.
    pub code: Code,
    /// Cause, for classes that have one.
    pub cause: Option<Cause>,
    /// State.
    pub state: State,
    /// The hub.
    pub hub: Option<HubId>,
    /// The lane, where it is one.
    pub lane: Option<LaneId>,
    /// The peer.
    pub peer: Option<PeerId>,
    /// The plugin's process.
    pub plugin: Option<ProcId>,
    /// The host's process.
    pub host: Option<ProcId>,
    /// The lane's ring.
    pub ring: Option<Indexes>,
    /// Its capacity, in entries.
    pub capacity: Option<u32>,
    /// Tokens queued on the consumer's end; `None` if not seen.
    pub doorbell_pending: Option<u32>,
    /// How long the state has lasted (or lasted), ns.
    pub stuck_ns: u64,
    /// How often this lane has had this class and cause, this time included.
    pub count: u64,
    /// The threads that should have served the lane.
    pub threads: Vec<(ProcId, ThreadObservation)>,
    /// The last events of the lane from both processes, oldest first.
    pub timeline: Vec<Event>,
    /// The rule that fired, in one line.
    pub rule: &'static str,
    /// One or two sentences in plain words, with what to look at next.
    pub explanation: String,
    /// What woke the consumer, or why nothing can be claimed.
    pub note: Option<String>,
    /// The thread that acted wrongly, where the events name one.
    pub culprit: Option<(ProcId, Tid)>,
}
