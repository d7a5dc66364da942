//! Each condition of the proof counts: a pair of looks that shows a stuck lane shows none once any one thing is different.

use shmtrace_engine::{
    Cause, Code, Config, Direction, Engine, Finding, HubId, LaneId, Mono, Output, PeerId, ProcId,
    SocketInode, State, Tid,
    input::{
        Event, EventKind, Indexes, Input, LaneObservation, PeerBinding, PeerRings,
        ProcessObservation, Sample, ThreadObservation, Topology, WaitsFor,
    },
};

const MS: u64 = 1_000_000;
const LANE: LaneId = LaneId {
    hub: HubId(1),
    peer: PeerId(1),
    direction: Direction::ToPeer,
};
const HOST: ProcId = ProcId { pid: 10, start: 1 };
const PLUGIN: ProcId = ProcId { pid: 20, start: 1 };
const STUCK: Indexes = Indexes { head: 3, tail: 2 };

/// An engine that was told at 3 s that an entry waits.
fn engine() -> Engine {
    let mut engine = attached();
    sample(&mut engine, 3000, STUCK);
    engine
}

/// An engine that knows the peer.
fn attached() -> Engine {
    let mut engine = Engine::new(Config::default());
    engine.attached(Mono(1000 * MS));
    let (hub, path) = (LANE.hub, String::new());
    engine.handle(Input::Topology(Topology::Hub { hub, path }));
    engine.handle(Input::Topology(Topology::Peer(PeerBinding {
        hub,
        peer: LANE.peer,
        name: "plugin".to_owned(),
        plugin: Some(PLUGIN),
        host: Some(HOST),
        host_end: Some(SocketInode(1)),
        plugin_end: Some(SocketInode(2)),
        flags: 1,
        certain: true,
    })));
    engine
}

fn sample(engine: &mut Engine, at_ms: u64, ring: Indexes) {
    engine.handle(Input::Sample(Sample {
        at: Mono(at_ms * MS),
        lane: LANE,
        ring,
        capacity: 8,
    }));
}

fn thread(tid: u32) -> ThreadObservation {
    ThreadObservation {
        tid: Tid(tid),
        name: "runtime".to_owned(),
        state: 'S',
        syscall: None,
        wchan: None,
        runs: Some(5),
        sleeps: Some(5),
        cpu_ns: Some(5),
        ran_meanwhile: false,
        waits_for: WaitsFor::Doorbell,
        stack: None,
    }
}

/// A look that shows a stuck lane.
fn stuck(at_ms: u64) -> LaneObservation {
    let process = |proc: ProcId| ProcessObservation {
        proc: Some(proc),
        alive: true,
        has_end: None,
        threads: vec![thread(proc.pid)],
    };
    LaneObservation {
        lane: LANE,
        begun: Mono(at_ms * MS),
        finished: Mono(at_ms * MS),
        before: STUCK,
        after: STUCK,
        capacity: 8,
        hub_intact: true,
        token: Some(false),
        queued: Some(0),
        consumer: process(PLUGIN),
        producer: process(HOST),
        missing: Vec::new(),
        failed_sends_unseen: false,
    }
}

/// What is proven by these looks.
fn proven(engine: &mut Engine, looks: &[LaneObservation]) -> Vec<Finding> {
    for look in looks {
        engine.advance(look.begun, look.begun);
        engine.handle(Input::Lane(Box::new(look.clone())));
    }
    let said = std::iter::from_fn(|| engine.poll_output());
    let findings = said.filter_map(|output| match output {
        Output::Finding(finding) => Some(*finding),
        Output::Request(_) => None,
    });
    findings
        .filter(|finding| finding.state == State::Missed)
        .collect()
}

#[test]
fn two_looks_a_grace_apart_prove_it() {
    let found = proven(&mut engine(), &[stuck(3010), stuck(3061)]);
    let codes: Vec<Code> = found.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, [Code::MissedWakeup]);
}

#[test]
fn two_looks_within_the_grace_do_not() {
    assert_eq!(proven(&mut engine(), &[stuck(3010), stuck(3059)]), []);
    assert_eq!(proven(&mut engine(), &[stuck(3010)]), []);
}

/// A change to both looks, or to the second alone.
type Change = fn(&mut LaneObservation);

const OF_BOTH: [(&str, Change); 14] = [
    ("the ring moves under the look", |look| {
        look.before.head -= 1;
    }),
    ("entries are taken under the look", |look| {
        look.before.tail -= 1;
    }),
    ("the ring is empty", |look| {
        (look.before.tail, look.after.tail) = (3, 3);
    }),
    ("the tail is beyond the head", |look| {
        (look.before.tail, look.after.tail) = (4, 4);
    }),
    ("more waits than fits", |look| look.capacity = 0),
    ("the hub file was replaced", |look| look.hub_intact = false),
    ("the queue was not seen", |look| {
        (look.token, look.queued) = (None, None);
    }),
    ("the consumer is dead", |look| look.consumer.alive = false),
    ("the consumer is not known", |look| {
        look.consumer = ProcessObservation::default();
    }),
    ("the consumer ran during the look", |look| {
        look.consumer.threads[0].ran_meanwhile = true;
    }),
    ("the consumer is frozen", |look| freeze(&mut look.consumer)),
    ("the producer is frozen", |look| freeze(&mut look.producer)),
    ("what the consumer waits for was not seen", |look| {
        look.consumer.threads[0].waits_for = WaitsFor::Nothing;
    }),
    ("the producer ran during the look", |look| {
        look.producer.threads[0].ran_meanwhile = true;
    }),
];

fn freeze(process: &mut ProcessObservation) {
    process.threads[0].wchan = Some("do_freezer_trap".to_owned());
}

const OF_THE_SECOND: [(&str, Change); 6] = [
    ("the consumer ran in between", |look| {
        look.consumer.threads[0].runs = Some(6);
    }),
    ("the consumer has another thread", |look| {
        look.consumer.threads.push(thread(21));
    }),
    ("the consumer's thread is another", |look| {
        look.consumer.threads[0].tid = Tid(22);
    }),
    ("the consumer's runs are not known", |look| {
        (
            look.consumer.threads[0].runs,
            look.consumer.threads[0].sleeps,
        ) = (None, None);
    }),
    ("more was published", |look| {
        (look.before.head, look.after.head) = (4, 4);
    }),
    ("some was taken", |look| {
        (look.before, look.after) = (Indexes { head: 4, tail: 3 }, Indexes { head: 4, tail: 3 });
    }),
];

#[test]
fn every_condition_counts() {
    for (what, change) in OF_BOTH {
        let mut looks = [stuck(3010), stuck(3061)];
        looks.iter_mut().for_each(change);
        assert_eq!(proven(&mut engine(), &looks), [], "{what}");
    }
    for (what, change) in OF_THE_SECOND {
        let mut looks = [stuck(3010), stuck(3061)];
        change(&mut looks[1]);
        assert_eq!(proven(&mut engine(), &looks), [], "{what}");
    }
}

#[test]
fn no_thread_may_be_in_any_state_but_asleep() {
    for state in ['R', 'D', 'T', 't', 'I', 'P'] {
        let mut looks = [stuck(3010), stuck(3061)];
        for look in &mut looks {
            look.consumer.threads[0].state = state;
        }
        assert_eq!(
            proven(&mut engine(), &looks),
            [],
            "a consumer in state {state}"
        );
        let mut looks = [stuck(3010), stuck(3061)];
        for look in &mut looks {
            look.producer.threads[0].state = state;
        }
        assert_eq!(
            proven(&mut engine(), &looks),
            [],
            "a producer in state {state}"
        );
    }
}

#[test]
fn a_history_that_begins_behind_the_entry_tells_no_cause() {
    // The entry was there before the trace began, so its ring is not on record.
    let found = proven(&mut engine(), &[stuck(3010), stuck(3061)]);
    assert_eq!(found[0].cause, Some(Cause::Unknown));
}

/// A record of the lane.
fn event(
    engine: &mut Engine,
    at_ms: u64,
    tid: u32,
    kind: impl Fn(Option<PeerRings>) -> EventKind,
    to_peer: Indexes,
) {
    let kind = kind(Some(PeerRings {
        hub: LANE.hub,
        peer: LANE.peer,
        to_peer: Some(to_peer),
        to_host: None,
    }));
    let (at, cpu) = (Mono(at_ms * MS), 0);
    let proc = if tid < 20 { HOST } else { PLUGIN };
    let tid = Tid(tid);
    engine.handle(Input::Event(Event {
        at,
        cpu,
        proc,
        tid,
        kind,
    }));
}

fn ring(rings: Option<PeerRings>) -> EventKind {
    let (end, syscall, result) = (SocketInode(1), None, 1);
    EventKind::Ring {
        end,
        syscall,
        result,
        rings,
    }
}

fn take(rings: Option<PeerRings>) -> EventKind {
    let (end, syscall, result) = (SocketInode(2), None, 1);
    EventKind::Take {
        end,
        syscall,
        result,
        rings,
    }
}

#[test]
fn a_second_ring_of_the_thread_that_had_rung_masks_and_the_first_of_another_is_late() {
    for (healer, masked) in [(10, true), (11, false)] {
        let mut engine = attached();
        sample(&mut engine, 1500, Indexes { head: 2, tail: 2 });
        event(&mut engine, 2990, 10, ring, STUCK);
        event(&mut engine, 2991, 20, take, STUCK);
        sample(&mut engine, 3000, STUCK);
        let mut look = stuck(3020);
        look.producer.threads.push(thread(11));
        assert_eq!(proven(&mut engine, &[look]), []);
        event(&mut engine, 3030, healer, ring, STUCK);
        sample(&mut engine, 3031, Indexes { head: 3, tail: 3 });
        // The lane is busy again before the verdict.
        for more in 1..=100 {
            let (head, tail) = (3 + more, 2 + more);
            event(&mut engine, 3032, 10, ring, Indexes { head, tail });
        }
        engine.advance(Mono(3100 * MS), Mono(3100 * MS));
        let said = std::iter::from_fn(|| engine.poll_output());
        let masks = said
            .filter(|said| matches!(said, Output::Finding(found) if found.state == State::Masked));
        assert_eq!(masks.count() == 1, masked, "healed by thread {healer}");
    }
}

#[test]
fn a_record_of_the_ring_before_is_no_broken_ring() {
    let mut engine = engine();
    // The plugin's first ring of its own came in; then a late record of its predecessor's ring.
    let own = EventKind::Ring {
        end: SocketInode(2),
        syscall: None,
        result: 1,
        rings: None,
    };
    let begun = |at| {
        Input::Event(Event {
            at: Mono(at * MS),
            cpu: 0,
            proc: PLUGIN,
            tid: Tid(20),
            kind: own,
        })
    };
    engine.handle(begun(9000));
    event(
        &mut engine,
        9001,
        10,
        ring,
        Indexes {
            head: 900,
            tail: 900,
        },
    );
    sample(&mut engine, 9005, Indexes { head: 3, tail: 3 });
    engine.advance(Mono(9030 * MS), Mono(9010 * MS));
    sample(&mut engine, 9035, Indexes { head: 4, tail: 4 });
    engine.advance(Mono(10_100 * MS), Mono(10_080 * MS));
    assert_eq!(proven(&mut engine, &[]), []);
}

#[test]
fn a_record_whose_indexes_were_read_late_is_no_broken_ring() {
    for (later, expected) in [(9, &[][..]), (3, &[Code::RingCorrupt])] {
        let mut engine = engine();
        event(&mut engine, 9000, 10, ring, Indexes { head: 7, tail: 7 });
        sample(&mut engine, 9001, Indexes { head: 3, tail: 3 });
        engine.advance(Mono(9030 * MS), Mono(9010 * MS));
        sample(
            &mut engine,
            9035,
            Indexes {
                head: later,
                tail: later,
            },
        );
        engine.advance(Mono(9035 * MS), Mono(9015 * MS));
        // A plugin's end could still become known.
        engine.advance(Mono(10_100 * MS), Mono(10_080 * MS));
        let codes: Vec<Code> = proven(&mut engine, &[])
            .iter()
            .map(|found| found.code)
            .collect();
        assert_eq!(
            codes, expected,
            "a head of 7 on record, of 3 in the next sample, then of {later}"
        );
    }
}
