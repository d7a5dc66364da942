//! The daemon of the world: ticks, samples, records on their way, answers.

use shmtrace_engine::{
    Direction, LaneId, Mono, Output, Request, Tid,
    input::{
        Event, EventKind, Input, LaneObservation, Loss, ProcessObservation, Sample,
        ThreadObservation,
    },
};

use super::{CAPACITY, HOST, MS, US, World, plugin, proc_of};

/// Between two drains.
const TICK: u64 = 5 * MS;
/// A look takes so long.
const LOOK: u64 = 200 * US;

impl World {
    pub(super) fn record(&mut self, tid: Tid, kind: EventKind) {
        if self.sight.blind {
            return;
        }
        self.dice = self
            .dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        if ((self.dice >> 40) & 255) < u64::from(self.sight.drops) {
            self.dropped += 1;
            return;
        }
        let thread = &self.threads[&tid];
        let ahead = self.sight.ahead.get(&thread.cpu).copied().unwrap_or(0);
        let late = self.sight.late.get(&thread.cpu).copied().unwrap_or(0);
        let event = Event {
            at: Mono(self.now + ahead),
            cpu: thread.cpu,
            proc: thread.proc,
            tid,
            kind,
        };
        self.records.push_back((self.now + late, event));
    }

    /// The records that nobody read yet are lost.
    pub fn lose_records(&mut self) {
        let records = self.records.len() as u64;
        self.records.clear();
        let loss = Loss {
            from: Mono(self.now - self.watermark),
            to: Mono(self.now),
            records,
        };
        self.tell(Input::Loss(loss));
    }

    /// Time passes; the daemon does its work.
    pub fn wait(&mut self, ns: u64) {
        let until = self.now + ns;
        while self.now < until {
            let due = self
                .engine
                .next_timeout()
                .is_some_and(|at| at.0 <= self.now);
            if due || self.next_tick <= self.now {
                self.drain();
                self.sample();
                self.next_tick = self.now + TICK;
                self.advance();
            }
            self.serve_requests();
            // The engine's own time comes before the next tick if it is due earlier, but time does pass.
            let due = self.engine.next_timeout().map_or(u64::MAX, |at| at.0);
            let next = self.next_tick.min(due.max(self.now + 100 * US)).min(until);
            self.now = self.now.max(next);
        }
    }

    fn advance(&mut self) {
        let complete_until = Mono(self.now.saturating_sub(self.watermark));
        self.engine.advance(Mono(self.now), complete_until);
    }

    fn drain(&mut self) {
        if self.dropped > 0 {
            let loss = Loss {
                from: Mono(self.now.saturating_sub(TICK)),
                to: Mono(self.now),
                records: std::mem::take(&mut self.dropped),
            };
            self.tell(Input::Loss(loss));
        }
        let (due, waiting) = std::mem::take(&mut self.records)
            .into_iter()
            .partition(|(at, _)| *at <= self.now);
        self.records = waiting;
        let due: std::collections::VecDeque<(u64, Event)> = due;
        // As the buffers are read: one CPU after the other.
        let mut due: Vec<Event> = due.into_iter().map(|(_, event)| event).collect();
        due.sort_by_key(|event| event.cpu);
        for event in due {
            self.tell(Input::Event(event));
        }
    }

    fn sample(&mut self) {
        let rings: Vec<_> = self
            .rings
            .iter()
            .map(|(id, ring)| (*id, ring.indexes))
            .collect();
        for (lane, ring) in rings {
            if self.sampled.insert(lane, ring) != Some(ring) || !ring.is_empty() {
                let at = Mono(self.now);
                self.tell(Input::Sample(Sample {
                    at,
                    lane,
                    ring,
                    capacity: CAPACITY,
                }));
            }
        }
    }

    fn serve_requests(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::Finding(finding) => {
                    self.findings.push(*finding);
                    continue;
                }
                Output::Request(_) if self.sight.unanswered => {
                    self.looks += 1;
                    continue;
                }
                Output::Request(Request::ObserveLane(lane) | Request::ObserveClosely(lane)) => {
                    self.looks += 1;
                    let seen = self.observe(lane);
                    self.now = seen.finished.0;
                    self.tell(Input::Lane(Box::new(seen)));
                }
                Output::Request(Request::ObserveHub(_)) => {
                    let mut seen = self.hub.clone();
                    seen.at = Mono(self.now);
                    if seen.all_asleep.is_none() {
                        let asleep = self.threads.values().all(|thread| thread.state == 'S');
                        seen.all_asleep = Some(asleep);
                    }
                    self.tell(Input::Hub(Box::new(seen)));
                }
                Output::Request(Request::ObserveMemory) => {
                    if let Some(mut seen) = self.memory.clone() {
                        seen.at = Mono(self.now);
                        self.tell(Input::Memory(seen));
                    }
                }
            }
            self.advance();
        }
    }

    /// What a look at the lane shows now; nothing moves meanwhile.
    pub fn observe(&self, lane: LaneId) -> LaneObservation {
        let ring = &self.rings[&lane];
        let (plugin, host) = (plugin(lane.peer.0).0, HOST.0);
        let (producer, consumer) = match lane.direction {
            Direction::ToPeer => (host, plugin),
            Direction::ToHost => (plugin, host),
        };
        let token = ring.tokens > 0;
        let seen = !self.sight.no_queues;
        LaneObservation {
            lane,
            begun: Mono(self.now),
            finished: Mono(self.now + LOOK),
            before: ring.indexes,
            after: ring.indexes,
            capacity: CAPACITY,
            hub_intact: !self.sight.hub_gone,
            token: seen.then_some(token),
            queued: seen.then_some(ring.tokens),
            consumer: self.process(consumer),
            producer: self.process(producer),
            missing: Vec::new(),
            failed_sends_unseen: self.sight.failed_sends_unseen,
        }
    }

    fn process(&self, pid: u32) -> ProcessObservation {
        let proc = proc_of(pid);
        let unknown = self.sight.unknown_peer && pid != HOST.0;
        let threads = self
            .threads
            .iter()
            .filter(|(_, thread)| thread.proc == proc);
        ProcessObservation {
            proc: (!unknown).then_some(proc),
            alive: !self.dead.contains(&proc),
            has_end: Some(!self.sight.ends_closed),
            threads: threads
                .map(|(tid, thread)| ThreadObservation {
                    tid: *tid,
                    name: thread.name.clone(),
                    state: thread.state,
                    syscall: None,
                    wchan: None,
                    runs: Some(thread.runs),
                    sleeps: Some(thread.sleeps),
                    cpu_ns: Some(thread.cpu_ns),
                    ran_meanwhile: false,
                    waits_for: thread.waits_for,
                    stack: None,
                })
                .collect(),
        }
    }
}
