//! Missed wakeups by their causes, each with the healthy run that looks most like it.

mod world;

use shmtrace_engine::{Cause, Code, State, Tid, input::WaitsFor};
use world::*;

/// How a wakeup is lost on a lane on which `n` messages went well before.
fn with_history(n: u32, fault: Fault) -> World {
    let mut world = World::new(2);
    world.wait(30 * MS);
    world.round_trips(0, n);
    world.round_trips(1, n);
    fault(&mut world);
    world.wait(300 * MS);
    world
}

fn consumed_then_slept(world: &mut World) {
    let lane = to_peer(0);
    world.run(HOST);
    world.publish(lane);
    world.ring(lane);
    world.idle(HOST, lane);
    world.wake(plugin(0), 1);
    world.take(lane, plugin(0));
    world.idle(plugin(0), lane);
}

fn rung_before_publish(world: &mut World) {
    let lane = to_peer(0);
    world.run(HOST);
    world.ring(lane);
    world.serve(lane);
    world.publish(lane);
    world.idle(HOST, lane);
}

fn never_rung(world: &mut World) {
    let lane = to_peer(0);
    world.run(HOST);
    world.publish(lane);
    world.idle(HOST, lane);
}

fn ring_failed(world: &mut World) {
    let lane = to_peer(0);
    world.run(HOST);
    world.publish(lane);
    world.rang(lane, HOST, ECONNREFUSED);
    world.idle(HOST, lane);
}

fn ring_failed_unseen(world: &mut World) {
    world.sight.ends_closed = true;
    never_rung(world);
}

fn wrong_doorbell(world: &mut World) {
    let lane = to_peer(0);
    world.run(HOST);
    world.publish(lane);
    world.ring(to_peer(1));
    world.idle(HOST, to_peer(1));
    world.serve(to_peer(1));
}

fn stolen_by_another(world: &mut World) {
    let lane = to_peer(0);
    world.run(HOST);
    world.publish(lane);
    world.ring(lane);
    world.run(plugin(1));
    world.take(lane, plugin(1));
    world.sleep(plugin(1), WaitsFor::Doorbell);
    world.idle(HOST, lane);
}

fn stolen_unseen(world: &mut World) {
    let lane = to_peer(0);
    world.run(HOST);
    world.publish(lane);
    world.ring(lane);
    world.ring_of(lane).tokens = 0;
    world.idle(HOST, lane);
}

/// What goes wrong.
type Fault = fn(&mut World);

const FAULTS: [(Fault, Cause); 8] = [
    (consumed_then_slept, Cause::ConsumedThenSlept),
    (rung_before_publish, Cause::RungBeforePublish),
    (never_rung, Cause::NeverRung),
    (ring_failed, Cause::RingFailed),
    (ring_failed_unseen, Cause::RingFailed),
    (wrong_doorbell, Cause::WrongDoorbell),
    (stolen_by_another, Cause::Stolen),
    (stolen_unseen, Cause::Stolen),
];

#[test]
fn each_cause_is_named() {
    for (number, (fault, cause)) in FAULTS.into_iter().enumerate() {
        for history in [0, 1, 5, 31, 32, 33, 200] {
            // See the next test.
            let world = with_history(history, fault);
            let rung = cause != Cause::NeverRung && !world.sight.ends_closed;
            let cause = if history == 0 && !rung {
                Cause::Unknown
            } else {
                cause
            };
            let said: Vec<_> = world
                .with_state(State::Missed)
                .iter()
                .map(|finding| (finding.lane, finding.code, finding.cause))
                .collect();
            assert_eq!(
                said,
                [(Some(to_peer(0)), Code::MissedWakeup, Some(cause))],
                "fault {number} after {history} round trips"
            );
        }
    }
}

/// So many round trips with the first plugin, each after a pause.
fn trips_every(world: &mut World, pause: u64, number: u32) {
    for _ in 0..number {
        world.wait(pause);
        world.round_trips(0, 1);
    }
}

/// Off the CPU between queueing the token and the end of the call.
fn late_signal(world: &mut World, late: u64) {
    let lane = to_peer(0);
    world.run(HOST);
    world.publish(lane);
    world.ring_of(lane).tokens += 1;
    world.serve(lane);
    world.wait(late);
    world.rang(lane, HOST, 1);
    world.idle(HOST, lane);
}

#[test]
fn a_signal_that_was_recorded_late_makes_no_token_vanish() {
    for late in [1, 15, 30, 400] {
        for (fault, cause) in [
            (consumed_then_slept as Fault, Cause::ConsumedThenSlept),
            (stolen_unseen, Cause::Stolen),
        ] {
            let mut world = World::new(1);
            world.wait(30 * MS);
            world.round_trips(0, 5);
            let lane = to_peer(0);
            late_signal(&mut world, late * MS);
            trips_every(&mut world, 30 * MS, 3);
            world.wait(30 * MS);
            fault(&mut world);
            world.wait(300 * MS);
            world.assert_missed(lane, Code::MissedWakeup, Some(cause));
        }
    }
}

#[test]
fn nor_do_several_in_traffic_that_never_rests() {
    for (fault, cause) in [
        (consumed_then_slept as Fault, Cause::ConsumedThenSlept),
        (stolen_unseen, Cause::Stolen),
    ] {
        let mut world = World::new(1);
        world.wait(30 * MS);
        for _ in 0..4 {
            late_signal(&mut world, 30 * MS);
            trips_every(&mut world, 5 * MS, 400);
        }
        fault(&mut world);
        world.wait(300 * MS);
        world.assert_missed(to_peer(0), Code::MissedWakeup, Some(cause));
    }
}

#[test]
fn nor_does_the_first_one_after_a_loss() {
    let mut world = World::new(1);
    world.wait(30 * MS);
    world.round_trips(0, 5);
    world.lose_records();
    // So that the loss is over, and the count begins amid traffic.
    trips_every(&mut world, 5 * MS, 20);
    late_signal(&mut world, 30 * MS);
    trips_every(&mut world, 5 * MS, 20);
    consumed_then_slept(&mut world);
    world.wait(300 * MS);
    world.assert_missed(
        to_peer(0),
        Code::MissedWakeup,
        Some(Cause::ConsumedThenSlept),
    );
}

#[test]
fn tokens_from_before_the_trace_are_allowed_for_once_they_have_been_seen_to_stay() {
    let mut world = World::new(1);
    let lane = to_peer(0);
    world.ring_of(lane).tokens = 1;
    world.wait(30 * MS);
    world.run(plugin(0));
    assert!(world.take(lane, plugin(0)));
    world.idle(plugin(0), lane);
    trips_every(&mut world, 30 * MS, 50);
    world.wait(30 * MS);
    // The consumer is about to take a token, and another one takes it first.
    world.run(HOST);
    world.publish(lane);
    world.ring(lane);
    world.ring(lane);
    world.idle(HOST, lane);
    world.wake(plugin(0), 1);
    world.take(lane, plugin(0));
    world.ring_of(lane).tokens = 0;
    world.idle(plugin(0), lane);
    world.wait(300 * MS);
    world.assert_missed(lane, Code::MissedWakeup, Some(Cause::Stolen));
}

#[test]
fn before_the_first_ring_a_ring_from_before_the_trace_may_be_meant() {
    let mut world = World::new(1);
    never_rung(&mut world);
    world.wait(300 * MS);
    world.assert_missed(to_peer(0), Code::MissedWakeup, Some(Cause::Unknown));
}

#[test]
fn where_failed_sends_are_not_seen_nobody_is_said_not_to_have_rung() {
    for (fault, cause) in [
        (never_rung as Fault, Cause::Unknown),
        (ring_failed_unseen, Cause::RingFailed),
        (rung_before_publish, Cause::RungBeforePublish),
    ] {
        let mut world = World::new(2);
        world.sight.failed_sends_unseen = true;
        world.wait(30 * MS);
        world.round_trips(0, 33);
        fault(&mut world);
        world.wait(300 * MS);
        world.assert_missed(to_peer(0), Code::MissedWakeup, Some(cause));
    }
}

#[test]
fn a_take_just_before_the_signal_may_be_of_either() {
    // Clocks of two CPUs may differ, so the take may have been the token's; only a count that began in quiet tells.
    let mut world = World::new(1);
    world.round_trips(0, 1);
    stolen_unseen(&mut world);
    world.wait(300 * MS);
    world.assert_missed(to_peer(0), Code::MissedWakeup, Some(Cause::Unknown));

    let mut world = World::new(1);
    world.wait(30 * MS);
    world.round_trips(0, 1);
    stolen_unseen(&mut world);
    world.wait(300 * MS);
    world.assert_missed(to_peer(0), Code::MissedWakeup, Some(Cause::Stolen));
}

#[test]
fn the_same_without_the_fault_is_silent() {
    for history in [0, 1, 33, 200] {
        with_history(history, |world| {
            world.send(to_peer(0));
            world.serve(to_peer(0));
        })
        .assert_clean();
    }
}

#[test]
fn without_records_the_cause_is_unknown() {
    for (fault, _) in FAULTS {
        let mut world = World::new(2);
        world.round_trips(0, 3);
        world.sight.blind = true;
        // Whatever went on before is a hole in the history.
        world.lose_records();
        fault(&mut world);
        world.lose_records();
        world.wait(300 * MS);
        world.assert_missed(to_peer(0), Code::MissedWakeup, Some(Cause::Unknown));
    }
}

#[test]
fn records_lost_at_the_fault_make_the_cause_unknown() {
    for (fault, _) in FAULTS {
        let mut world = World::new(2);
        world.round_trips(0, 3);
        fault(&mut world);
        world.lose_records();
        world.wait(300 * MS);
        world.assert_missed(to_peer(0), Code::MissedWakeup, Some(Cause::Unknown));
    }
}

#[test]
fn a_finding_comes_within_the_grace_and_some_milliseconds() {
    for (fault, _) in FAULTS {
        let mut world = World::new(2);
        world.round_trips(0, 3);
        fault(&mut world);
        let stuck_at = world.now;
        world.wait(300 * MS);
        let found = world.with_state(State::Missed)[0].at.0;
        assert!(
            found - stuck_at <= 70 * MS,
            "{} us",
            (found - stuck_at) / US
        );
    }
}

#[test]
fn a_ring_that_may_have_been_astray_leaves_the_cause_open() {
    // Two threads that ring, and too few rings to say which of them had nothing to announce.
    const SECOND: Tid = Tid(101);
    for few in 1..4 {
        let mut world = World::new(2);
        world.thread(SECOND, 100, "tokio-rt-worker", 1);
        for number in 0..few {
            for (peer, by) in [(0, HOST), (1, if number % 2 == 0 { SECOND } else { HOST })] {
                world.run(by);
                world.publish(to_peer(peer));
                world.ring_by(to_peer(peer), by);
                world.idle(by, to_peer(peer));
                world.serve(to_peer(peer));
            }
        }
        world.wait(300 * MS);
        wrong_doorbell(&mut world);
        world.wait(1000 * MS);
        let causes: Vec<_> = world
            .with_state(State::Missed)
            .iter()
            .map(|finding| finding.cause)
            .collect();
        let right = [vec![Some(Cause::WrongDoorbell)], vec![Some(Cause::Unknown)]];
        assert!(
            right.contains(&causes),
            "after {few} round trips: {causes:?}"
        );
    }
}
