//! Looking at lanes: when, and what follows from what is seen.

use super::{
    Engine, HEALED_WAIT, Healed, LOOK_LOST, Vacancy,
    findings::{evidence, woken_by},
};
use crate::{
    Cause, Code, LaneId, Mono, Output, Request, State, Tid, cause,
    condition::Key,
    explain::sentence,
    history::{History, Ring, SKEW},
    hubs,
    input::{LaneObservation, Sample},
    lane::{Lane, Open, Suspicion},
    stuck::{self, Known, Shown},
};

/// Looks at a lane that turned out healthy are spaced by this, doubled each time, ns.
const LOOK_AGAIN: u64 = 5_000_000;
/// The largest such space, ns.
const LOOK_AGAIN_MOST: u64 = 160_000_000;
/// What cannot be seen for this long is said, ns.
const UNSEEN: u64 = 1_000_000_000;
/// A proof waits this long for records that may tell the cause, ns.
const RECORDS_WAIT: u64 = 100_000_000;
/// That no record is there says something only when none can come any more: records were seen to be this late, ns.
const LATE_RECORD: u64 = 52_000_000;
/// A consumer that runs from time to time (a heartbeat) and leaves its entries each time never shows one long sleep.
/// After this many such runs, and as many graces, the lane is as stuck as if it had slept.
const RESTARTS: u32 = 20;

impl Engine {
    pub(super) fn look_at_lanes(&mut self) {
        let now = self.now;
        for (id, lane) in &mut self.lanes {
            let waiting = lane.ring.is_some_and(|ring| !ring.is_empty());
            if !(waiting || lane.owed) || lane.open.is_some() || now < lane.look_at {
                continue;
            }
            if lane
                .asked_at
                .is_some_and(|asked| now.since(asked) < LOOK_LOST)
            {
                continue;
            }
            lane.asked_at = Some(now);
            let request = if lane.suspicion.is_some() {
                Request::ObserveClosely(*id)
            } else {
                Request::ObserveLane(*id)
            };
            self.output.push_back(Output::Request(request));
        }
    }

    pub(super) fn observed(&mut self, seen: Box<LaneObservation>) {
        let id = seen.lane;
        self.now = self.now.max(seen.finished);
        self.sample(&Sample {
            at: seen.finished,
            lane: id,
            ring: seen.after,
            capacity: seen.capacity,
        });
        let parted = self.has_parted(id);
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        lane.asked_at = None;
        if lane.open.is_some() {
            return;
        }
        if parted {
            // What is left in the rings of a dead peer waits for nobody.
            lane.look_at = seen.finished.plus(hubs::LOOK_IDLE);
            return;
        }
        let covering = |ring: &&Ring| ring.head.is_some_and(|head| head >= seen.after.head);
        let announced: Vec<Tid> = lane
            .history
            .rings
            .iter()
            .filter(covering)
            .map(|ring| ring.tid)
            .collect();
        let bystanders = self.servers.bystanders(&seen.consumer, lane.service);
        let others = self.servers.bystanders(&seen.producer, lane.service);
        let since = lane.unchanged_since;
        let known = Known {
            announced: !announced.is_empty(),
            past_ringing: &|thread| {
                announced.contains(&thread.tid)
                    || others.contains(&thread.tid)
                    || seen
                        .producer
                        .proc
                        .is_some_and(|proc| self.servers.slept_since(proc, thread.tid, since))
            },
            bystander: &|thread| bystanders.contains(&thread.tid),
            plugin_left: self
                .peers
                .get(&(id.hub, id.peer))
                .is_some_and(|peer| peer.vacant == Some(Vacancy::Ended)),
        };
        match stuck::shown(&seen, &known) {
            Shown::Moving => {
                self.starving(id, &seen, &bystanders);
                self.healthy(id, &seen);
            }
            Shown::Unseen(why) => self.unseen(id, why, &seen),
            Shown::Stuck(code) => self.stuck(id, code, seen, &bystanders),
        }
    }

    /// The host has marked the lane's peer dead.
    fn has_parted(&self, id: LaneId) -> bool {
        let peer = self.binding((id.hub, id.peer));
        peer.is_some_and(|peer| peer.flags & hubs::DEAD != 0)
    }

    pub(super) fn healthy(&mut self, id: LaneId, seen: &LaneObservation) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        lane.unseen = None;
        lane.healthy_looks += 1;
        let space = LOOK_AGAIN << lane.healthy_looks.min(10).saturating_sub(1);
        lane.look_at = seen.finished.plus(space.min(LOOK_AGAIN_MOST));
        if lane.suspicion.is_some() {
            // It runs now; whether it takes the entries will be seen. Look soon.
            lane.look_at = seen.finished.plus(LOOK_AGAIN);
        }
    }

    pub(super) fn unseen(&mut self, id: LaneId, why: String, seen: &LaneObservation) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        lane.look_at = seen.finished.plus(LOOK_AGAIN_MOST);
        let since = match &lane.unseen {
            Some((since, _)) => *since,
            None => seen.finished,
        };
        lane.unseen = Some((since, why.clone()));
        if seen.finished.since(since) < UNSEEN || lane.inconclusive_said {
            return;
        }
        lane.inconclusive_said = true;
        lane.suspicion = None;
        self.release(id);
        let number = self.number();
        let mut finding = self.finding(
            id,
            number,
            Code::MissedWakeup,
            Some(Cause::Unknown),
            State::Inconclusive,
            self.now,
        );
        evidence(&mut finding, seen);
        finding.stuck_ns = seen.finished.since(since);
        finding.note = Some(why);
        self.say(finding);
    }

    pub(super) fn stuck(
        &mut self,
        id: LaneId,
        code: Code,
        seen: Box<LaneObservation>,
        bystanders: &[Tid],
    ) {
        let grace = self.config.grace;
        let number = self.next_id;
        let broken = Key {
            code: Code::RingCorrupt,
            hub: Some(id.hub),
            peer: Some(id.peer),
            lane: Some(id),
        };
        if self.conditions.keys().contains(&broken) {
            if let Some(lane) = self.lanes.get_mut(&id) {
                lane.look_at = seen.finished.plus(LOOK_AGAIN_MOST);
            }
            return;
        }
        // What waits is noted now, so that it is seen if it is overwritten while it waits.
        if let Some(hub) = self.hubs.get_mut(&id.hub) {
            hub.look_at = seen.begun;
        }
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        lane.unseen = None;
        let Some(suspicion) = &mut lane.suspicion else {
            let since = seen.begun;
            lane.look_at = since.plus(grace);
            lane.suspicion = Some(Suspicion {
                id: number,
                code,
                since,
                first: seen.clone(),
                steady: seen.clone(),
                restarts: 0,
            });
            lane.history.hold();
            self.next_id += 1;
            let mut finding = self.finding(id, number, code, None, State::Suspect, seen.finished);
            evidence(&mut finding, &seen);
            self.say(finding);
            return;
        };
        let same = suspicion.code == code && suspicion.steady.after == seen.after;
        let slept = stuck::slept_between(&suspicion.steady, &seen, &|thread| {
            bystanders.contains(&thread.tid)
        }) == Some(true);
        let long = suspicion.restarts >= RESTARTS
            && seen.finished.since(suspicion.since) >= grace * u64::from(RESTARTS);
        if !same || !(slept || long) {
            suspicion.restarts += u32::from(same);
            suspicion.code = code;
            lane.look_at = seen.begun.plus(grace);
            suspicion.steady = seen;
            return;
        }
        let steady_for = seen.begun.since(suspicion.steady.finished);
        // The reading took time itself; one look more costs little.
        if steady_for < grace.saturating_sub(2 * (seen.finished.since(seen.begun))) && !long {
            lane.look_at = suspicion.steady.finished.plus(grace);
            return;
        }
        self.proven(id, &seen);
    }

    pub(super) fn proven(&mut self, id: LaneId, seen: &LaneObservation) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        let Some(suspicion) = &lane.suspicion else {
            return;
        };
        let code = suspicion.code;
        // Whatever led to this happened before it was first seen. Records of that time may still be on their way.
        let told = self.complete_until >= suspicion.since.plus(SKEW);
        let proven_at = suspicion.steady.finished.plus(self.config.grace);
        if code == Code::MissedWakeup && !told && seen.finished.since(proven_at) < RECORDS_WAIT {
            lane.look_at = seen.finished.plus(LOOK_AGAIN);
            return;
        }
        let latest = suspicion.since.plus(LATE_RECORD);
        if code == Code::MissedWakeup && told && seen.finished < latest {
            let verdict = self.cause(id, &self.lanes[&id].history, seen);
            if verdict.cause.is_an_absence() {
                if let Some(lane) = self.lanes.get_mut(&id) {
                    lane.look_at = latest;
                }
                return;
            }
        }
        let Some(suspicion) = self
            .lanes
            .get_mut(&id)
            .and_then(|lane| lane.suspicion.take())
        else {
            return;
        };
        let verdict = (code == Code::MissedWakeup).then(|| {
            if told {
                self.cause(id, &self.lanes[&id].history, seen)
            } else {
                cause::unknown()
            }
        });
        let cause = verdict.map(|verdict| verdict.cause);
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        lane.open = Some(Open {
            id: suspicion.id,
            code,
            cause,
            since: suspicion.since,
            ring: seen.after,
        });
        *lane.counts.entry((code, cause)).or_default() += 1;
        let mut finding = self.finding(id, suspicion.id, code, cause, State::Missed, self.now);
        evidence(&mut finding, seen);
        finding.stuck_ns = seen.finished.since(suspicion.since);
        finding.culprit = verdict.and_then(|verdict| verdict.culprit);
        finding.explanation = sentence(&finding, self.binding((id.hub, id.peer)));
        self.release(id);
        self.say(finding);
    }

    pub(super) fn cause(
        &self,
        id: LaneId,
        history: &History,
        seen: &LaneObservation,
    ) -> cause::Verdict {
        // Without its doorbell, no record of a signal could be entered in its history.
        let known = |lane: &Lane| lane.rung_on.is_some() && lane.taken_from.is_some();
        if !self.lanes.get(&id).is_some_and(known) {
            return cause::unknown();
        }
        let producer = self.producer(id);
        let others = self
            .lanes
            .iter()
            .filter(|(other, _)| {
                **other != id && producer.is_some() && self.producer(**other) == producer
            })
            .flat_map(|(_, other)| {
                (0..other.history.rings.len())
                    .map(|index| (other.history.surplus(index), other.history.rings[index]))
            });
        let (mut strays, mut doubtful) = (Vec::new(), Vec::new());
        for (surplus, ring) in others {
            if surplus.is_stray() {
                strays.push(ring);
            } else if surplus.may_be_stray() {
                doubtful.push(ring);
            }
        }
        cause::judge(&cause::Case {
            history,
            ring: seen.after,
            consumer: self.consumer(id),
            strays: &strays,
            doubtful: &doubtful,
            blind: false,
            end_closed: seen.producer.alive && seen.producer.has_end == Some(false),
            failed_sends_unseen: seen.failed_sends_unseen,
        })
    }

    /// Decides what became of suspicions whose lanes moved, once the records about it are in.
    pub(super) fn settle_healed(&mut self) {
        let now = self.now;
        let (ready, waiting) = std::mem::take(&mut self.healed)
            .into_iter()
            .partition(|healed| now.since(healed.at) >= HEALED_WAIT);
        self.healed = waiting;
        for healed in ready {
            self.masked(&healed);
            self.release(healed.lane);
        }
    }

    /// The history of a lane is not held for any suspicion any more.
    fn release(&mut self, id: LaneId) {
        let waiting = self.healed.iter().any(|healed| healed.lane == id);
        if let Some(lane) = self.lanes.get_mut(&id)
            && lane.suspicion.is_none()
            && !waiting
        {
            lane.history.release();
        }
    }

    /// Masked, if an unrelated signal healed it: a ring that announced later entries, or none that could be seen.
    pub(super) fn masked(&mut self, healed: &Healed) {
        let Suspicion {
            id: number,
            code,
            since,
            first,
            ..
        } = &healed.suspicion;
        let Some(lane) = self.lanes.get(&healed.lane) else {
            return;
        };
        if *code != Code::MissedWakeup || !lane.history.covers(first.after.tail) {
            return;
        }
        if could_be_late(lane, first, healed.at) {
            return;
        }
        let note = woken_by(lane, *since, healed.at);
        // What healed it is not what caused it.
        let story = lane.history.until(first.begun, first.after);
        let verdict = self.cause(healed.lane, &story, first);
        if verdict.cause == Cause::Unknown {
            return; // a claim about a lane that works again needs its whole story
        }
        let mut finding = self.finding(
            healed.lane,
            *number,
            *code,
            Some(verdict.cause),
            State::Masked,
            healed.at,
        );
        evidence(&mut finding, first);
        finding.stuck_ns = healed.at.since(*since);
        finding.note = Some(note);
        finding.culprit = verdict.culprit;
        finding.explanation = sentence(&finding, self.binding((healed.lane.hub, healed.lane.peer)));
        if let Some(lane) = self.lanes.get_mut(&healed.lane) {
            *lane.counts.entry((*code, Some(verdict.cause))).or_default() += 1;
        }
        self.say(finding);
    }

    /// A process of the lane ended, or its hub is gone.
    pub(super) fn end(&mut self, id: LaneId, why: &str) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        lane.suspicion = None;
        let open = lane.open.take();
        self.release(id);
        let Some(open) = open else { return };
        let mut finding = self.finding(id, open.id, open.code, open.cause, State::Ended, self.now);
        finding.ring = Some(open.ring);
        finding.stuck_ns = self.now.since(open.since);
        finding.note = Some(why.to_owned());
        self.say(finding);
    }
}

/// Whether the lane may have been healed by the very signal that its entries were to get, or was at work all the time.
fn could_be_late(lane: &Lane, first: &LaneObservation, healed_at: Mono) -> bool {
    let rings = &lane.history.rings;
    let after = |ring: &&Ring| ring.at >= first.begun;
    // A ring for the entries that waited, or one with nothing to announce: two producers may ring in each other's place.
    let late = (0..rings.len()).any(|index| {
        let ring = &rings[index];
        let before = index.checked_sub(1).and_then(|before| rings[before].head);
        // Whoever had rung for these entries before has no ring for them left.
        let rung_before = rings.iter().any(|earlier| {
            !after(&earlier)
                && earlier.tid == ring.tid
                && earlier.signalled()
                && earlier.head.is_some_and(|head| head >= first.after.head)
        });
        after(&ring)
            && !rung_before
            && ring.head.is_none_or(|head| {
                head <= first.after.head || before.is_some_and(|before| head <= before)
            })
    });
    let rung = rings.iter().filter(after).any(|ring| ring.at <= healed_at);
    // One thread that waits for fds does nothing else. Of several, one may wait for another that has taken the token.
    late || !(rung || first.consumer.threads.len() == 1)
}
