//! One lane: what is known of it, and where its suspicion stands.

use crate::{
    finding::Code,
    history::History,
    ids::{Mono, SocketInode},
    input::{Indexes, LaneObservation},
    servers::Service,
    starving::Starving,
};

/// A lane with its history.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lane {
    pub(crate) history: History,
    pub(crate) service: Service,
    /// When the indexes were last looked at.
    pub(crate) sampled_at: Mono,
    /// A record saw indexes that no look has reached, and when it came in.
    pub(crate) doubt: Option<(Mono, Indexes)>,
    pub(crate) ring: Option<Indexes>,
    pub(crate) capacity: u32,
    /// Since when head and tail are as they are.
    pub(crate) unchanged_since: Mono,
    /// Since when the oldest waiting entry waits.
    pub(crate) waiting_since: Option<Mono>,
    /// A call to the peer is open whose request left the ring: whoever took it may want to run.
    pub(crate) owed: bool,
    /// An observation was asked for and has not come.
    pub(crate) asked_at: Option<Mono>,
    /// Not before this time is it looked at again.
    pub(crate) look_at: Mono,
    pub(crate) suspicion: Option<Suspicion>,
    pub(crate) open: Option<Open>,
    /// Observations in a row that did not show a stuck lane; looks are spaced out by it.
    pub(crate) healthy_looks: u32,
    /// What kept it from being seen, and since when.
    pub(crate) unseen: Option<(Mono, String)>,
    pub(crate) inconclusive_said: bool,
    /// Ends of its doorbell: where it is rung, where its tokens are queued.
    pub(crate) rung_on: Option<SocketInode>,
    pub(crate) taken_from: Option<SocketInode>,
    /// Findings so far, by class and cause.
    pub(crate) counts: std::collections::BTreeMap<(Code, Option<crate::Cause>), u64>,
    pub(crate) starving: Starving,
}

impl Lane {
    /// Entries wait in it, it does not move, and nobody has looked why.
    pub(crate) fn has_come_to_a_stop(&self) -> bool {
        let waiting = self.ring.is_some_and(|ring| !ring.is_empty());
        waiting && self.open.is_none() && self.healthy_looks == 0
    }
}

/// A lane that was stuck when last observed.
#[derive(Debug, Clone)]
pub(crate) struct Suspicion {
    pub(crate) id: u64,
    pub(crate) code: Code,
    /// First observation of this state.
    pub(crate) since: Mono,
    pub(crate) first: Box<LaneObservation>,
    /// The present run of unchanged sleeps began here.
    pub(crate) steady: Box<LaneObservation>,
    /// Times that a thread ran in between and left the entries.
    pub(crate) restarts: u32,
}

/// A finding that was proven and is not over.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    pub(crate) id: u64,
    pub(crate) code: Code,
    pub(crate) cause: Option<crate::Cause>,
    pub(crate) since: Mono,
    pub(crate) ring: Indexes,
}
