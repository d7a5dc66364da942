//! Putting findings together.

use super::Engine;
use crate::{
    Cause, Code, Direction, Finding, LaneId, Mono, Output, ProcId, State, explain::sentence,
    input::LaneObservation, lane::Lane,
};

impl Engine {
    pub(super) fn number(&mut self) -> u64 {
        let number = self.next_id;
        self.next_id += 1;
        number
    }

    pub(super) fn finding(
        &self,
        id: LaneId,
        number: u64,
        code: Code,
        cause: Option<Cause>,
        state: State,
        at: Mono,
    ) -> Finding {
        let lane = self.lanes.get(&id);
        let peer = self.binding((id.hub, id.peer));
        let mut finding = Finding {
            id: number,
            at,
            code,
            cause,
            state,
            hub: Some(id.hub),
            lane: Some(id),
            peer: Some(id.peer),
            plugin: peer.and_then(|peer| peer.plugin),
            host: peer.and_then(|peer| peer.host),
            ring: lane.and_then(|lane| lane.ring),
            capacity: lane.map(|lane| lane.capacity),
            doorbell_pending: None,
            stuck_ns: 0,
            count: lane
                .and_then(|lane| lane.counts.get(&(code, cause)).copied())
                .unwrap_or(0)
                .max(1),
            threads: Vec::new(),
            timeline: lane
                .map(|lane| lane.history.events_until(at).copied().collect())
                .unwrap_or_default(),
            rule: rule(code),
            explanation: String::new(),
            note: None,
            culprit: None,
        };
        finding.explanation = sentence(&finding, peer);
        finding
    }

    pub(super) fn say(&mut self, finding: Finding) {
        *self
            .summary
            .findings
            .entry((finding.code, finding.state))
            .or_default() += 1;
        self.output.push_back(Output::Finding(Box::new(finding)));
    }

    pub(super) fn consumer(&self, id: LaneId) -> Option<ProcId> {
        let peer = self.binding((id.hub, id.peer))?;
        match id.direction {
            Direction::ToPeer => peer.plugin,
            Direction::ToHost => peer.host,
        }
    }

    pub(super) fn producer(&self, id: LaneId) -> Option<ProcId> {
        let peer = self.binding((id.hub, id.peer))?;
        match id.direction {
            Direction::ToPeer => peer.host,
            Direction::ToHost => peer.plugin,
        }
    }
}

/// Puts what was observed into a finding.
pub(super) fn evidence(finding: &mut Finding, seen: &LaneObservation) {
    finding.ring = Some(seen.after);
    finding.capacity = Some(seen.capacity);
    finding.doorbell_pending = match (seen.queued, seen.token) {
        (Some(queued), _) => Some(queued),
        (None, Some(token)) => Some(u32::from(token)),
        (None, None) => None,
    };
    if let Some(proc) = seen.consumer.proc {
        finding.threads.extend(
            seen.consumer
                .threads
                .iter()
                .map(|thread| (proc, thread.clone())),
        );
    }
}

/// What woke the consumer of a lane that had been stuck since `since`.
pub(super) fn woken_by(lane: &Lane, since: Mono, until: Mono) -> String {
    let ring = lane
        .history
        .rings
        .iter()
        .find(|ring| ring.at > since && ring.at <= until);
    match ring {
        Some(ring) => format!("woken by a later doorbell from tid {} of pid {}", ring.tid.0, ring.proc.pid),
        None => "woken by something other than this lane's doorbell: a timeout, a signal or another lane".to_owned(),
    }
}

/// The rule that fires for a class.
pub(super) fn rule(code: Code) -> &'static str {
    match code {
        Code::MissedWakeup => {
            "visible_head > tail, consumer asleep in a wait for fds, no token queued, producer past its ring call, unchanged for the grace"
        }
        Code::NotDraining => {
            "visible_head > tail, token queued, consumer asleep in a wait for fds, unchanged for the grace"
        }
        Code::ConsumerBlocked => {
            "visible_head > tail, consumer asleep in calls that no doorbell can end, unchanged for the grace"
        }
        Code::RingFull => {
            "len == capacity, producer waits for space, consumer blocked, unchanged for the grace"
        }
        Code::NeverEnqueued | Code::Unanswered => {
            "no progress for the time given by --expect-progress"
        }
        Code::SlotsStuck => "slots in flight that no ring entry refers to",
        Code::RingCorrupt => "indexes or descriptors that the protocol does not allow",
        Code::PeerDied => {
            "process gone while its peer entry is active, or with entries, slots or calls left"
        }
        Code::Starved => "woken and runnable, hardly ever run",
        Code::MemoryLimit => "memory limit reached",
    }
}
