//! Healthy lanes that look stuck at some moment, and lanes of which too little is seen: nothing may be claimed.

mod world;

use shmtrace_engine::{Cause, Code, State, Tid, input::WaitsFor};
use world::*;

const SECOND: Tid = Tid(101);
const WORKER: Tid = Tid(201);

#[test]
fn between_publish_and_ring_however_long_the_producer_is_off_the_cpu() {
    let mut world = World::new(1);
    world.round_trips(0, 3);
    for state in ['R', 'T', 't', 'D'] {
        world.run(HOST);
        world.publish(to_peer(0));
        world.threads.get_mut(&HOST).expect("host").state = state;
        world.wait(2000 * MS);
        world.threads.get_mut(&HOST).expect("host").state = 'R';
        world.ring(to_peer(0));
        world.idle(HOST, to_peer(0));
        world.serve(to_peer(0));
        world.wait(100 * MS);
    }
    world.assert_clean();
}

#[test]
fn between_drain_and_dequeue_however_long_the_consumer_is_off_the_cpu() {
    let mut world = World::new(1);
    world.round_trips(0, 3);
    for state in ['R', 'T', 't', 'D'] {
        world.send(to_peer(0));
        world.wake(plugin(0), 1);
        world.take(to_peer(0), plugin(0));
        let thread = world.threads.get_mut(&plugin(0)).expect("plugin");
        thread.state = state;
        thread.cpu_ns += MS;
        world.wait(900 * MS);
        world.consume(to_peer(0));
        world.threads.get_mut(&plugin(0)).expect("plugin").state = 'R';
        world.idle(plugin(0), to_peer(0));
        world.wait(100 * MS);
    }
    world.assert_clean();
}

#[test]
fn a_worker_that_still_runs_the_woken_task() {
    let mut world = World::new(1);
    world.thread(WORKER, 200, "plugin", 3);
    world.sleep(WORKER, WaitsFor::Futex);
    world.round_trips(0, 20);
    world.send(to_peer(0));
    world.wake(plugin(0), 1);
    world.take(to_peer(0), plugin(0));
    world.run(WORKER);
    world.idle(plugin(0), to_peer(0));
    for _ in 0..20 {
        world.wait(50 * MS);
        world.run(WORKER);
        world.threads.get_mut(&WORKER).expect("worker").cpu_ns += MS;
    }
    world.consume(to_peer(0));
    world.sleep(WORKER, WaitsFor::Futex);
    world.wait(100 * MS);
    world.assert_clean();
}

#[test]
fn a_second_producer_that_has_published_and_not_rung_yet() {
    for state in ['R', 'T'] {
        let mut world = World::new(1);
        world.thread(SECOND, 100, "host", 4);
        world.round_trips(0, 3);
        world.run(HOST);
        world.run(SECOND);
        // The first one's signal is taken before the second one publishes; its record shows what is there at the return.
        world.publish(to_peer(0));
        world.ring_of(to_peer(0)).tokens += 1;
        world.wake(plugin(0), 1);
        world.take(to_peer(0), plugin(0));
        world.consume(to_peer(0));
        world.idle(plugin(0), to_peer(0));
        world.publish(to_peer(0));
        world.rang(to_peer(0), HOST, 1);
        world.idle(HOST, to_peer(0));
        world.threads.get_mut(&SECOND).expect("thread").state = state;
        world.wait(1000 * MS);
        world.threads.get_mut(&SECOND).expect("thread").state = 'R';
        world.ring_by(to_peer(0), SECOND);
        world.sleep(SECOND, WaitsFor::Doorbell);
        world.serve(to_peer(0));
        world.wait(300 * MS);
        world.assert_clean();
    }
}

#[test]
fn a_full_queue_and_one_token_for_many_entries() {
    let mut world = World::new(1);
    for _ in 0..50 {
        world.run(HOST);
        for _ in 0..CAPACITY {
            world.publish(to_peer(0));
            world.ring(to_peer(0));
        }
        world.idle(HOST, to_peer(0));
        world.run(plugin(0));
        world.wait(20 * MS);
        world.serve(to_peer(0));
        world.run(HOST);
        world.publish(to_peer(0));
        world.publish(to_peer(0));
        world.ring(to_peer(0));
        world.idle(HOST, to_peer(0));
        world.serve(to_peer(0));
    }
    world.assert_clean();
}

#[test]
fn after_a_full_queue_the_cause_is_still_right() {
    let mut world = World::new(1);
    world.wait(50 * MS);
    world.run(HOST);
    for _ in 0..CAPACITY {
        world.publish(to_peer(0));
        world.ring(to_peer(0));
    }
    world.idle(HOST, to_peer(0));
    world.wake(plugin(0), 1);
    while world.take(to_peer(0), plugin(0)) {}
    world.idle(plugin(0), to_peer(0));
    world.wait(300 * MS);
    world.assert_missed(
        to_peer(0),
        Code::MissedWakeup,
        Some(Cause::ConsumedThenSlept),
    );
}

#[test]
fn records_of_two_cpus_in_the_wrong_order() {
    for (host, plugin_cpu) in [(300 * US, 0), (0, 300 * US), (16 * MS, 0), (0, 16 * MS)] {
        let mut world = World::new(1);
        world.sight.ahead.insert(0, host);
        world.sight.ahead.insert(1, plugin_cpu);
        world.wait(50 * MS);
        world.round_trips(0, 50);
        world.assert_clean();
        world.wait(50 * MS);
        world.send(to_peer(0));
        world.wake(plugin(0), 1);
        world.take(to_peer(0), plugin(0));
        world.idle(plugin(0), to_peer(0));
        world.wait(300 * MS);
        let cause = world.with_state(State::Missed)[0].cause;
        assert!(
            matches!(cause, Some(Cause::ConsumedThenSlept | Cause::Unknown)),
            "{cause:?} with clocks ahead by {host} and {plugin_cpu}"
        );
    }
}

#[test]
fn records_that_come_later_than_promised() {
    let mut world = World::new(1);
    world.round_trips(0, 5);
    world.sight.late.insert(0, 45 * MS);
    world.round_trips(0, 50);
    world.assert_clean();
    world.send(to_peer(0));
    world.wake(plugin(0), 1);
    world.take(to_peer(0), plugin(0));
    world.idle(plugin(0), to_peer(0));
    world.wait(300 * MS);
    world.assert_missed(to_peer(0), Code::MissedWakeup, Some(Cause::Unknown));
}

#[test]
fn records_that_come_late_but_in_time_by_the_watermark() {
    let mut world = World::new(1);
    world.watermark = 60 * MS;
    world.sight.late.insert(0, 50 * MS);
    world.wait(50 * MS);
    world.round_trips(0, 5);
    world.send(to_peer(0));
    world.wake(plugin(0), 1);
    world.take(to_peer(0), plugin(0));
    world.idle(plugin(0), to_peer(0));
    world.wait(300 * MS);
    world.assert_missed(
        to_peer(0),
        Code::MissedWakeup,
        Some(Cause::ConsumedThenSlept),
    );
}

#[test]
fn what_cannot_be_seen_is_inconclusive_once_and_says_why() {
    type Blind = fn(&mut World);
    let blinds: [Blind; 3] = [
        |world| world.sight.no_queues = true,
        |world| world.sight.hub_gone = true,
        |world| world.threads.retain(|tid, _| *tid == HOST),
    ];
    for blind in blinds {
        let mut world = World::new(1);
        world.round_trips(0, 3);
        blind(&mut world);
        world.run(HOST);
        world.publish(to_peer(0));
        world.idle(HOST, to_peer(0));
        world.wait(500 * MS);
        world.assert_clean();
        world.wait(10_000 * MS);
        let said: Vec<_> = world
            .findings
            .iter()
            .map(|f| (f.state, f.note.is_some()))
            .collect();
        assert_eq!(said, [(State::Inconclusive, true)]);
    }
}

#[test]
fn looks_that_are_never_answered_claim_nothing() {
    let mut world = World::new(1);
    world.round_trips(0, 3);
    world.sight.unanswered = true;
    world.run(HOST);
    world.publish(to_peer(0));
    world.idle(HOST, to_peer(0));
    world.wait(3000 * MS);
    world.assert_clean();
    assert!(world.looks < 60, "asked {} times", world.looks);
}

#[test]
fn a_peer_that_nobody_knows_is_judged_by_all_who_could_be_it() {
    let mut world = World::new(1);
    world.sight.unknown_peer = true;
    world.bind(0);
    world.wait(100 * MS);
    world.run(plugin(0));
    world.run(HOST);
    world.publish(to_peer(0));
    world.idle(HOST, to_peer(0));
    world.wait(3000 * MS);
    world.assert_clean();
    world.sleep(plugin(0), WaitsFor::Doorbell);
    world.wait(3000 * MS);
    let missed = world.with_state(State::Missed);
    assert_eq!(missed.len(), 1);
    assert_eq!(missed[0].code, Code::MissedWakeup);
}

#[test]
fn what_a_dead_plugin_leaves_in_its_rings_is_no_missed_wakeup() {
    let mut world = World::new(2);
    world.round_trips(0, 3);
    world.publish(to_host(0));
    world.publish(to_peer(0));
    world.kill(plugin(0));
    world.bury(0);
    world.wait(10_000 * MS);
    world.assert_clean();
    // Dead before shmtrace came.
    let mut world = World::new(1);
    world.sight.unknown_peer = true;
    world.threads.remove(&plugin(0));
    world.bury(0);
    world.publish(to_host(0));
    world.publish(to_peer(0));
    world.wait(10_000 * MS);
    world.assert_clean();
}

#[test]
fn a_plugin_that_ended_before_the_host_noticed_is_seen_as_that() {
    let mut world = World::new(1);
    world.round_trips(0, 3);
    world.run(HOST);
    world.publish(to_peer(0));
    world.publish(to_host(0));
    world.idle(HOST, to_peer(0));
    world.kill(plugin(0));
    // Discovery has parted with the process, and the hub with nobody.
    world.bind_nobody(0);
    world.sight.unknown_peer = true;
    world.wait(10_000 * MS);
    assert!(world.with_state(State::Inconclusive).is_empty());
    // The host sleeps in front of the dead plugin's message, which nobody will announce any more.
    world.assert_missed(to_host(0), Code::MissedWakeup, Some(Cause::Unknown));
}

#[test]
fn a_producer_that_nobody_knows_may_still_ring() {
    let mut world = World::new(1);
    world.sight.unknown_peer = true;
    world.bind(0);
    world.threads.remove(&plugin(0));
    world.ring_of(to_host(0)).indexes.head += 1;
    world.wait(5000 * MS);
    assert!(world.with_state(State::Missed).is_empty());
    assert_eq!(world.with_state(State::Inconclusive).len(), 1);
}

#[test]
fn stopped_for_long_in_front_of_a_message() {
    let mut world = World::new(1);
    world.round_trips(0, 3);
    world.threads.get_mut(&plugin(0)).expect("plugin").state = 'T';
    world.send(to_peer(0));
    world.wait(10_000 * MS);
    world.threads.get_mut(&plugin(0)).expect("plugin").state = 'S';
    world.serve(to_peer(0));
    world.wait(300 * MS);
    world.assert_clean();
}

#[test]
fn a_consumer_with_a_heartbeat_is_found_stuck_and_without_entries_it_is_not() {
    for stuck in [true, false] {
        let mut world = World::new(1);
        world.round_trips(0, 3);
        if stuck {
            world.run(HOST);
            world.publish(to_peer(0));
            world.idle(HOST, to_peer(0));
        }
        for _ in 0..300 {
            world.wait(20 * MS);
            world.wake(plugin(0), 0);
            world.sleep(plugin(0), WaitsFor::Doorbell);
        }
        assert_eq!(world.with_state(State::Missed).len(), usize::from(stuck));
    }
}

#[test]
fn two_sleeps_are_not_one() {
    // Asleep at every look, and yet it ran in between: for a while that proves nothing.
    let mut world = World::new(1);
    world.round_trips(0, 3);
    world.run(HOST);
    world.publish(to_peer(0));
    world.idle(HOST, to_peer(0));
    for _ in 0..25 {
        world.wait(20 * MS);
        world.wake(plugin(0), 0);
        world.sleep(plugin(0), WaitsFor::Doorbell);
    }
    assert!(world.with_state(State::Missed).is_empty());
}

#[test]
fn a_timeout_that_takes_the_entries_soon_is_no_missed_wakeup() {
    // A consumer that polls its ring every 30 ms: found late, but found.
    let mut world = World::new(1);
    world.round_trips(0, 3);
    for _ in 0..50 {
        world.run(HOST);
        world.publish(to_peer(0));
        world.idle(HOST, to_peer(0));
        world.wait(30 * MS);
        world.wake(plugin(0), 0);
        world.consume(to_peer(0));
        world.idle(plugin(0), to_peer(0));
    }
    assert!(world.with_state(State::Missed).is_empty());
}

#[test]
fn masked_by_a_later_doorbell_and_not_by_its_own_late_one() {
    for late in [false, true] {
        let mut world = World::new(1);
        world.wait(50 * MS);
        world.round_trips(0, 10);
        world.run(HOST);
        world.publish(to_peer(0));
        world.sleep(HOST, WaitsFor::Futex);
        world.wait(20 * MS);
        world.run(HOST);
        if !late {
            world.publish(to_peer(0));
        }
        world.ring(to_peer(0));
        world.idle(HOST, to_peer(0));
        world.serve(to_peer(0));
        world.wait(200 * MS);
        let masked = world.with_state(State::Masked);
        assert_eq!(masked.len(), usize::from(!late), "late: {late}");
        assert!(world.with_state(State::Missed).is_empty());
        for finding in masked {
            assert_eq!(finding.cause, Some(Cause::NeverRung));
            assert!(finding.stuck_ns > 10 * MS && finding.stuck_ns < 30 * MS);
        }
    }
}

#[test]
fn not_masked_if_the_late_ring_comes_after_another_producers() {
    let mut world = World::new(1);
    world.thread(SECOND, 100, "host", 4);
    world.wait(50 * MS);
    world.round_trips(0, 10);
    world.run(HOST);
    world.publish(to_peer(0));
    world.sleep(HOST, WaitsFor::Futex);
    world.wait(20 * MS);
    world.run(SECOND);
    world.publish(to_peer(0));
    world.ring_by(to_peer(0), SECOND);
    world.sleep(SECOND, WaitsFor::Doorbell);
    world.serve(to_peer(0));
    world.run(HOST);
    world.ring(to_peer(0));
    world.idle(HOST, to_peer(0));
    world.serve(to_peer(0));
    world.wait(200 * MS);
    world.assert_clean();
}

#[test]
fn a_busy_bystander_does_not_hide_a_stuck_lane_and_a_busy_worker_does() {
    for (name, hides) in [("compute", false), ("plugin", true)] {
        let mut world = World::new(1);
        world.thread(WORKER, 200, name, 3);
        world.run(WORKER);
        world.wait(50 * MS);
        world.round_trips(0, 20);
        world.send(to_peer(0));
        world.wake(plugin(0), 1);
        world.take(to_peer(0), plugin(0));
        world.idle(plugin(0), to_peer(0));
        for _ in 0..60 {
            world.wait(50 * MS);
            let thread = world.threads.get_mut(&WORKER).expect("worker");
            thread.runs += 1;
            thread.cpu_ns += 50 * MS;
        }
        if hides {
            world.assert_clean();
        } else {
            world.assert_missed(
                to_peer(0),
                Code::MissedWakeup,
                Some(Cause::ConsumedThenSlept),
            );
        }
    }
}

#[test]
fn a_busy_thread_is_no_bystander_before_the_lane_was_served_often() {
    let mut world = World::new(1);
    world.thread(WORKER, 200, "compute", 3);
    world.run(WORKER);
    world.round_trips(0, 4);
    world.send(to_peer(0));
    world.wake(plugin(0), 1);
    world.take(to_peer(0), plugin(0));
    world.idle(plugin(0), to_peer(0));
    world.wait(700 * MS);
    world.assert_clean();
}

#[test]
fn a_busy_thread_that_was_once_at_a_doorbell_is_no_bystander() {
    let mut world = World::new(1);
    world.thread(WORKER, 200, "compute", 3);
    world.wake(WORKER, 1);
    world.round_trips(0, 20);
    world.send(to_peer(0));
    world.wake(plugin(0), 1);
    world.take(to_peer(0), plugin(0));
    world.idle(plugin(0), to_peer(0));
    world.wait(700 * MS);
    world.assert_clean();
}

#[test]
fn a_producer_that_computes_after_its_ring_does_not_hide_a_stuck_lane() {
    let mut world = World::new(1);
    world.wait(50 * MS);
    world.round_trips(0, 5);
    world.run(HOST);
    world.publish(to_peer(0));
    world.ring(to_peer(0));
    world.wake(plugin(0), 1);
    world.take(to_peer(0), plugin(0));
    world.idle(plugin(0), to_peer(0));
    world.wait(300 * MS);
    world.assert_missed(
        to_peer(0),
        Code::MissedWakeup,
        Some(Cause::ConsumedThenSlept),
    );
}

#[test]
fn a_busy_lane_is_not_looked_at() {
    let mut world = World::new(1);
    world.run(HOST);
    world.run(plugin(0));
    for _ in 0..2000 {
        world.publish(to_peer(0));
        world.ring(to_peer(0));
        world.publish(to_peer(0));
        world.take(to_peer(0), plugin(0));
        world.ring_of(to_peer(0)).indexes.tail += 1;
        let ring = world.ring_of(to_peer(0));
        ring.indexes.tail = ring.indexes.head - 1;
        world.wait(MS);
    }
    world.assert_clean();
    assert!(world.looks < 20, "{} looks", world.looks);
}
