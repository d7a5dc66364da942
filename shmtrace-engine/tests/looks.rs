//! One look at a lane: what keeps it from being suspect.

mod world;

use shmtrace_engine::{
    State,
    input::{Indexes, Input, LaneObservation},
};
use world::*;

/// Whether a look at a lane on which the host published and did not ring makes it suspect.
fn suspect(change: impl Fn(&mut LaneObservation)) -> bool {
    let mut world = World::new(1);
    world.round_trips(0, 3);
    world.sight.unanswered = true;
    world.run(HOST);
    world.publish(to_peer(0));
    world.idle(HOST, to_peer(0));
    world.wait(20 * MS);
    let mut seen = world.observe(to_peer(0));
    change(&mut seen);
    world.tell(Input::Lane(Box::new(seen)));
    world.wait(MS);
    !world.with_state(State::Suspect).is_empty()
}

#[test]
fn a_stuck_lane_is_suspect() {
    assert!(suspect(|_| {}));
}

#[test]
fn a_ring_that_was_emptied_meanwhile_is_not() {
    assert!(!suspect(|seen| {
        seen.before.tail = seen.before.head;
        seen.after.tail = seen.after.head;
    }));
}

#[test]
fn a_ring_that_moved_meanwhile_is_not() {
    assert!(!suspect(|seen| seen.before.head -= 1));
    assert!(!suspect(|seen| seen.after.head += 1));
}

#[test]
fn a_broken_ring_is_another_matter() {
    for ring in [
        Indexes {
            head: 4 + u64::from(CAPACITY),
            tail: 3,
        },
        Indexes { head: 4, tail: 5 },
    ] {
        assert!(!suspect(|seen| (seen.before, seen.after) = (ring, ring)));
    }
}

#[test]
fn threads_that_run_stop_or_wait_for_a_disk_are_not_asleep() {
    assert!(!suspect(
        |seen| seen.consumer.threads[0].ran_meanwhile = true
    ));
    assert!(!suspect(
        |seen| seen.producer.threads[0].ran_meanwhile = true
    ));
    for state in ['R', 'T', 't', 'D'] {
        assert!(
            !suspect(|seen| seen.consumer.threads[0].state = state),
            "{state}"
        );
    }
}

#[test]
fn every_thread_must_sleep() {
    assert!(!suspect(|seen| {
        let mut other = seen.consumer.threads[0].clone();
        other.tid.0 += 1;
        other.state = 'R';
        seen.consumer.threads.push(other);
    }));
}

#[test]
fn what_was_not_seen_is_not_guessed() {
    assert!(!suspect(|seen| seen.token = None));
    assert!(!suspect(|seen| seen.hub_intact = false));
    assert!(!suspect(|seen| seen.consumer.threads.clear()));
    assert!(!suspect(|seen| {
        seen.producer.proc = None;
        seen.producer.threads.clear();
    }));
}

#[test]
fn the_dead_do_not_sleep() {
    assert!(!suspect(|seen| seen.consumer.alive = false));
    // A dead producer does not ring any more.
    assert!(suspect(|seen| {
        seen.producer.alive = false;
        seen.producer.threads.clear();
    }));
}
