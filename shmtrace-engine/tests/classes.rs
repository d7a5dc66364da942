//! The classes of findings besides missed wakeups, and the life of a finding.

mod world;

use shmtrace_engine::{
    Code, Config, HubId, Mono, PeerId, SocketInode, State, Tid,
    input::{
        ClassObservation, DescriptorObservation, Event, EventKind, Indexes, Input,
        MemoryObservation, PeerBinding, PeerEntryObservation, Sample, SlotObservation, Topology,
        Violation, WaitsFor,
    },
};
use world::*;

fn said(world: &World, state: State) -> Vec<Code> {
    world
        .with_state(state)
        .iter()
        .map(|finding| finding.code)
        .collect()
}

#[test]
fn a_token_that_nobody_takes_is_not_draining() {
    let mut world = World::new(1);
    world.round_trips(0, 3);
    world.send(to_peer(0));
    world.wait(300 * MS);
    world.assert_missed(to_peer(0), Code::NotDraining, None);
}

#[test]
fn a_consumer_in_another_call_is_blocked_with_and_without_token() {
    for token in [false, true] {
        for wait in [WaitsFor::Other, WaitsFor::Futex, WaitsFor::HubFutex(44)] {
            let mut world = World::new(1);
            world.round_trips(0, 3);
            world.sleep(plugin(0), wait);
            world.send(to_peer(0));
            world.ring_of(to_peer(0)).tokens = u32::from(token);
            world.wait(300 * MS);
            world.assert_missed(to_peer(0), Code::ConsumerBlocked, None);
        }
    }
}

#[test]
fn a_consumer_in_another_call_is_no_finding_while_nothing_waits() {
    let mut world = World::new(1);
    world.round_trips(0, 3);
    world.sleep(plugin(0), WaitsFor::Other);
    world.ring_of(to_peer(0)).tokens = 1;
    world.wait(5000 * MS);
    world.assert_clean();
}

#[test]
fn a_full_ring_with_a_blocked_consumer_is_ring_full() {
    let mut world = World::new(1);
    world.round_trips(0, 3);
    world.sleep(plugin(0), WaitsFor::Other);
    world.run(HOST);
    for _ in 0..CAPACITY {
        world.publish(to_peer(0));
        world.ring(to_peer(0));
    }
    world.sleep(HOST, WaitsFor::HubFutex(44));
    world.wait(300 * MS);
    world.assert_missed(to_peer(0), Code::RingFull, None);
}

#[test]
fn a_full_ring_that_is_emptied_is_fine() {
    let mut world = World::new(1);
    for _ in 0..20 {
        world.run(HOST);
        for _ in 0..CAPACITY {
            world.publish(to_peer(0));
            world.ring(to_peer(0));
        }
        world.sleep(HOST, WaitsFor::HubFutex(44));
        world.run(plugin(0));
        world.wait(30 * MS);
        world.serve(to_peer(0));
        world.wait(2 * MS);
    }
    world.assert_clean();
}

#[test]
fn a_woken_thread_that_gets_no_cpu_is_starved_and_one_that_computes_is_not() {
    for computes in [false, true] {
        let mut world = World::new(1);
        world.round_trips(0, 3);
        world.send(to_peer(0));
        world.run(plugin(0));
        for _ in 0..60 {
            world.wait(50 * MS);
            if computes {
                world.threads.get_mut(&plugin(0)).expect("thread").cpu_ns += 50 * MS;
            }
        }
        let expected: &[Code] = if computes { &[] } else { &[Code::Starved] };
        assert_eq!(
            said(&world, State::Missed),
            expected,
            "computes: {computes}"
        );
        world.serve(to_peer(0));
        world.send(to_host(0));
        world.serve(to_host(0));
        world.wait(50 * MS);
        world.send(to_peer(0));
        world.run(plugin(0));
        world.wait(400 * MS);
        world.serve(to_peer(0));
        world.wait(400 * MS);
        assert_eq!(said(&world, State::Missed), expected);
    }
}

#[test]
fn a_thread_that_took_a_request_and_gets_no_cpu_is_starved() {
    for asleep in [false, true] {
        let mut world = World::new(1);
        world.round_trips(0, 3);
        world.hub.peers = vec![entry(1, true)];
        let answer = DescriptorObservation {
            lane: to_host(0),
            index: 0,
            ..request(1)
        };
        world.hub.calls = vec![
            DescriptorObservation {
                index: 0,
                ..request(1)
            },
            answer,
            request(2),
        ];
        world.send(to_peer(0));
        world.serve(to_peer(0));
        if !asleep {
            world.run(plugin(0));
        }
        world.wait(3000 * MS);
        let expected: &[Code] = if asleep { &[] } else { &[Code::Starved] };
        assert_eq!(said(&world, State::Missed), expected, "asleep: {asleep}");
    }
}

#[test]
fn a_thread_that_mostly_waits_for_a_cpu_is_starved_and_one_that_gets_its_share_or_waits_shortly_is_not()
 {
    // How long it waits each time, and how long it then runs.
    for (wait, run, starved) in [
        (700 * MS, 1000, true),
        (500 * MS, 2 * MS, true),
        (700 * MS, 20 * MS, false),
        (200 * MS, 1000, false),
    ] {
        let mut world = World::new(1);
        world.round_trips(0, 3);
        world.send(to_peer(0));
        world.run(plugin(0));
        let mut waited = 0;
        while waited < 6000 * MS {
            world.wait(wait);
            waited += wait;
            let thread = world.threads.get_mut(&plugin(0)).expect("thread");
            thread.runs += 1;
            thread.cpu_ns += run;
        }
        let expected: &[Code] = if starved { &[Code::Starved] } else { &[] };
        assert_eq!(said(&world, State::Missed), expected, "{wait} {run}");
    }
}

#[test]
fn a_starved_thread_that_serves_a_call_now_and_then_stays_starved_until_it_runs_freely() {
    let mut world = World::new(1);
    world.round_trips(0, 3);
    world.send(to_peer(0));
    for _ in 0..20 {
        world.run(plugin(0));
        world.wait(700 * MS);
        let thread = world.threads.get_mut(&plugin(0)).expect("thread");
        thread.cpu_ns += 1000;
        world.serve(to_peer(0));
        world.send(to_peer(0));
    }
    assert_eq!(said(&world, State::Missed), [Code::Starved]);
    assert_eq!(said(&world, State::Recovered), []);
    for _ in 0..100 {
        world.run(plugin(0));
        world.wait(60 * MS);
        world.serve(to_peer(0));
        world.send(to_peer(0));
    }
    assert_eq!(said(&world, State::Missed), [Code::Starved]);
    assert_eq!(said(&world, State::Recovered), [Code::Starved]);
}

#[test]
fn a_cpu_quota_that_holds_the_consumer_back_is_no_finding() {
    let mut world = World::new(1);
    for _ in 0..50 {
        world.send(to_peer(0));
        world.run(plugin(0));
        world.wait(100 * MS);
        world.serve(to_peer(0));
    }
    world.assert_clean();
}

fn entry(flags: u32, alive: bool) -> PeerEntryObservation {
    PeerEntryObservation {
        peer: PeerId(0),
        flags,
        last_seen: 0,
        alive: Some(alive),
    }
}

#[test]
fn a_dead_peer_with_an_active_entry_is_peer_died_until_the_host_notices() {
    let mut world = World::new(1);
    world.hub.peers = vec![entry(1, true)];
    world.wait(2000 * MS);
    world.assert_clean();
    world.kill(plugin(0));
    world.hub.peers = vec![entry(1, false)];
    world.wait(2000 * MS);
    assert_eq!(said(&world, State::Missed), [Code::PeerDied]);
    world.hub.peers = vec![entry(1 << 2, false)];
    world.wait(2000 * MS);
    assert_eq!(said(&world, State::Recovered), [Code::PeerDied]);
}

#[test]
fn a_host_that_reaps_its_child_in_time_is_fine() {
    // Between the first look at the dead and the second.
    for reaped_after in [5, 200, 380] {
        let mut world = World::new(1);
        world.hub.peers = vec![entry(1, true)];
        world.wait(1000 * MS);
        world.kill(plugin(0));
        world.hub.peers = vec![entry(1, false)];
        world.wait(reaped_after * MS);
        world.hub.peers = vec![entry(1 << 2, false)];
        world.wait(2000 * MS);
        world.assert_clean();
    }
}

#[test]
fn a_dead_consumer_is_no_missed_wakeup() {
    let mut world = World::new(1);
    world.kill(plugin(0));
    world.send(to_peer(0));
    world.wait(1000 * MS);
    world.assert_clean();
}

#[test]
fn a_broken_ring_is_said_once() {
    let mut world = World::new(1);
    world.round_trips(0, 3);
    world.wait(3000 * MS);
    world.hub.violations = vec![Violation {
        lane: Some(to_peer(0)),
        what: "descriptor 3 was overwritten".to_owned(),
    }];
    world.wait(3000 * MS);
    assert_eq!(said(&world, State::Missed), [Code::RingCorrupt]);
}

/// Peer 0 is another process from now on, with this end of a doorbell.
fn bind_next(world: &mut World, plugin_end: Option<SocketInode>) {
    world.thread(Tid(900), 900, "plugin", 1);
    world.tell(Input::Topology(Topology::Peer(PeerBinding {
        hub: HUB,
        peer: PeerId(0),
        name: String::new(),
        plugin: Some(proc_of(900)),
        host: Some(proc_of(100)),
        host_end: plugin_end.map(|end| SocketInode(end.0 - 1000)),
        plugin_end,
        flags: 1,
        certain: true,
    })));
}

#[test]
fn a_head_that_moves_back_is_a_broken_ring_unless_the_plugin_is_new() {
    // However short the watch: a plugin that rang has begun.
    for (age, anew) in [(3000, false), (3000, true), (100, false)] {
        let mut world = World::new(1);
        world.round_trips(0, 3);
        world.wait(age * MS);
        if anew {
            // Its ring may begin anew before the next plugin is known.
            world.kill(plugin(0));
            world.ring_of(to_peer(0)).indexes = Indexes { head: 0, tail: 0 };
            world.wait(1500 * MS);
            world.assert_clean();
            world.bind_nobody(0);
            world.hub.violations = vec![Violation {
                lane: Some(to_peer(0)),
                what: "head moved back from 3 to 0".to_owned(),
            }];
            world.wait(3000 * MS);
            world.assert_clean();
            world.hub.violations.clear();
            bind_next(&mut world, None);
        }
        world.ring_of(to_peer(0)).indexes = Indexes { head: 0, tail: 0 };
        world.wait(1500 * MS);
        let expected: &[Code] = if anew { &[] } else { &[Code::RingCorrupt] };
        assert_eq!(said(&world, State::Missed), expected);
    }
}

/// A reader that was held up takes the new plugin's first record, samples its ring and judges, all in one turn.
#[test]
fn a_ring_that_began_anew_while_nobody_looked_is_not_broken() {
    let mut world = World::new(1);
    world.round_trips(0, 3);
    world.wait(3000 * MS);
    world.kill(plugin(0));
    world.ring_of(to_peer(0)).indexes = Indexes { head: 0, tail: 0 };
    let end = SocketInode(2900);
    bind_next(&mut world, Some(end));
    let now = world.now + 300 * MS;
    world.tell(Input::Event(Event {
        at: Mono(now - 200 * MS),
        cpu: 0,
        proc: proc_of(900),
        tid: Tid(900),
        kind: EventKind::Ring {
            end,
            syscall: None,
            result: 1,
            rings: None,
        },
    }));
    world.tell(Input::Sample(Sample {
        at: Mono(now),
        lane: to_peer(0),
        ring: Indexes { head: 0, tail: 0 },
        capacity: CAPACITY,
    }));
    world.engine.advance(Mono(now), Mono(now - 20 * MS));
    world.now = now;
    world.wait(3000 * MS);
    world.assert_clean();
}

#[test]
fn a_ring_that_falls_to_its_beginning_is_broken_unless_its_plugin_may_just_have_begun() {
    for (age, expected) in [(100, &[][..]), (3000, &[Code::RingCorrupt])] {
        let mut world = World::new(1);
        // What an earlier plugin left behind: the one that is bound now has not rung yet.
        world.ring_of(to_peer(0)).indexes = Indexes { head: 3, tail: 3 };
        world.wait(age * MS);
        world.ring_of(to_peer(0)).indexes = Indexes { head: 0, tail: 0 };
        world.wait(3000 * MS);
        assert_eq!(said(&world, State::Missed), expected, "{age} ms");
    }
}

#[test]
fn a_ring_that_breaks_under_a_suspicion_is_broken_and_not_stuck() {
    for signalled in [false, true] {
        let mut world = World::new(1);
        world.round_trips(0, 3);
        world.wait(3000 * MS);
        world.publish(to_peer(0));
        if signalled {
            world.ring(to_peer(0));
            world.wake(plugin(0), 1);
            world.take(to_peer(0), plugin(0));
            world.idle(plugin(0), to_peer(0));
        }
        world.wait(30 * MS);
        world.hub.violations = vec![Violation {
            lane: Some(to_peer(0)),
            what: "entry 3 was overwritten while it waited".to_owned(),
        }];
        world.wait(1000 * MS);
        assert_eq!(said(&world, State::Missed), [Code::RingCorrupt]);
    }
}

const SLOT: SlotObservation = SlotObservation {
    class: 1,
    index: 7,
    generation: 3,
    owner: 0,
};

#[test]
fn slots_that_nothing_refers_to_are_stuck_once_everybody_sleeps() {
    let mut world = World::new(1);
    world.round_trips(0, 3);
    world.hub.orphans = vec![SLOT];
    world.wait(1500 * MS);
    world.assert_clean();
    // No sooner, and not much later.
    world.wait(1300 * MS);
    assert_eq!(said(&world, State::Missed), [Code::SlotsStuck]);
    world.hub.orphans.clear();
    world.wait(1000 * MS);
    assert_eq!(said(&world, State::Recovered), [Code::SlotsStuck]);
}

#[test]
fn slots_that_come_and_go_or_are_worked_on_are_fine() {
    let mut world = World::new(1);
    for generation in 0..40 {
        world.hub.orphans = vec![SlotObservation { generation, ..SLOT }];
        world.wait(300 * MS);
    }
    world.hub.all_asleep = Some(false);
    world.hub.orphans = vec![SLOT];
    world.wait(10_000 * MS);
    // However shortly somebody works on it.
    for _ in 0..4 {
        world.hub.all_asleep = Some(true);
        world.wait(1500 * MS);
        world.hub.all_asleep = Some(false);
        world.wait(300 * MS);
    }
    world.assert_clean();
}

#[test]
fn a_class_without_a_free_slot_is_stuck_only_if_it_lasts_and_all_sleep() {
    let full = ClassObservation {
        slot_size: 1024,
        total: 4,
        free: 0,
        allocated: 0,
        in_flight: 4,
    };
    for asleep in [false, true] {
        let mut world = World::new(1);
        world.hub.all_asleep = Some(asleep);
        world.hub.classes = vec![full];
        world.wait(5000 * MS);
        let expected: &[Code] = if asleep { &[Code::SlotsStuck] } else { &[] };
        assert_eq!(said(&world, State::Missed), expected);
    }
}

fn expecting() -> World {
    let config = Config {
        expect_progress: Some(1000 * MS),
        ..Config::default()
    };
    World::with(1, config)
}

fn request(channel: u32) -> DescriptorObservation {
    DescriptorObservation {
        lane: to_peer(0),
        index: u64::from(channel),
        waiting: false,
        msg_id: 70 + u64::from(channel),
        channel,
        method: 5,
        flags: 0,
    }
}

#[test]
fn a_request_without_an_answer_is_unanswered() {
    let mut world = expecting();
    world.round_trips(0, 2);
    world.hub.peers = vec![entry(1, true)];
    world.hub.calls = vec![request(3)];
    world.send(to_peer(0));
    world.serve(to_peer(0));
    world.wait(3000 * MS);
    assert_eq!(said(&world, State::Missed), [Code::Unanswered]);
    let text = &world.with_state(State::Missed)[0].explanation;
    assert!(
        text.contains("plugin-0") && text.contains("channel 3"),
        "{text}"
    );
}

#[test]
fn an_answer_that_was_rung_before_its_request_s_ring_returned_is_an_answer() {
    let mut world = expecting();
    world.hub.peers = vec![entry(1, true)];
    let answer = |channel| DescriptorObservation {
        lane: to_host(0),
        ..request(channel)
    };
    world.hub.calls = vec![request(0), request(1), answer(0), answer(1)];
    world.round_trips(0, 2);
    // The records of the last call: the answer's came first.
    world.send(to_host(0));
    world.serve(to_host(0));
    world.send(to_peer(0));
    world.serve(to_peer(0));
    world.wait(3000 * MS);
    assert_eq!(said(&world, State::Missed), [Code::NeverEnqueued]);
}

#[test]
fn quiet_with_nothing_open_is_never_enqueued() {
    let mut world = expecting();
    world.round_trips(0, 2);
    world.wait(3000 * MS);
    assert_eq!(said(&world, State::Missed), [Code::NeverEnqueued]);
    world.round_trips(0, 1);
    world.wait(500 * MS);
    assert_eq!(said(&world, State::Recovered), [Code::NeverEnqueued]);
}

#[test]
fn quiet_is_fine_where_nobody_expects_progress_or_somebody_works() {
    let mut world = World::new(1);
    world.round_trips(0, 2);
    world.wait(60_000 * MS);
    world.assert_clean();
    let mut world = expecting();
    world.run(plugin(0));
    world.wait(10_000 * MS);
    world.assert_clean();
}

fn memory(current: u64, oom_kills: u64, limit_hits: u64) -> MemoryObservation {
    MemoryObservation {
        at: Mono(0),
        cgroup: "/build".to_owned(),
        current,
        max: Some(1 << 30),
        oom_kills,
        limit_hits,
    }
}

#[test]
fn an_oom_kill_and_a_full_cgroup_in_which_nothing_moves_are_memory_limit() {
    for (after, found) in [
        (memory(1 << 20, 1, 0), true),
        (memory(1 << 30, 0, 9), true),
        (memory(1 << 30, 0, 0), false),
        (memory(1 << 20, 0, 0), false),
    ] {
        let mut world = World::new(1);
        world.memory = Some(memory(1 << 20, 0, 0));
        world.wait(4000 * MS);
        world.memory = Some(after.clone());
        for more in 1..5 {
            world.wait(1000 * MS);
            if after.limit_hits > 0 {
                world.memory = Some(memory(1 << 30, 0, 9 + more));
            }
        }
        let expected: &[Code] = if found { &[Code::MemoryLimit] } else { &[] };
        assert_eq!(said(&world, State::Missed), expected, "{after:?}");
    }
}

#[test]
fn an_oom_kill_in_a_cgroup_that_is_entered_right_after_the_attach_counts() {
    for entered_after in [0, 300, 1200, 5000] {
        let mut world = World::new(1);
        world.wait(entered_after * MS);
        world.memory = Some(memory(1 << 20, 1, 1));
        world.wait(3000 * MS);
        let said = said(&world, State::Missed);
        assert_eq!(said, [Code::MemoryLimit], "{entered_after}");
    }
}

#[test]
fn an_oom_kill_of_before_the_attach_does_not_count() {
    let mut world = World::under(1, memory(1 << 20, 1, 1));
    world.wait(3000 * MS);
    world.assert_clean();
}

/// The host publishes and does not ring.
fn stick(world: &mut World) {
    world.run(HOST);
    world.publish(to_peer(0));
    world.idle(HOST, to_peer(0));
}

#[test]
fn a_finding_lives_from_suspect_to_recovered_under_one_number_and_is_counted() {
    let mut world = World::new(1);
    world.round_trips(0, 3);
    for round in 1..=3 {
        stick(&mut world);
        world.wait(200 * MS);
        world.send(to_peer(0));
        world.serve(to_peer(0));
        world.wait(200 * MS);
        let life: Vec<_> = world
            .findings
            .drain(..)
            .map(|f| (f.id, f.state, f.count))
            .collect();
        let id = life[0].0;
        assert_eq!(
            life,
            [
                (id, State::Suspect, 1),
                (id, State::Missed, round),
                (id, State::Recovered, round)
            ]
        );
    }
}

#[test]
fn a_finding_ends_with_its_process_or_hub() {
    for hub in [false, true] {
        let mut world = World::new(1);
        world.round_trips(0, 3);
        stick(&mut world);
        world.wait(200 * MS);
        if hub {
            world.rings.clear();
            world.tell(Input::Topology(Topology::HubGone { hub: HUB }));
        } else {
            world.kill(plugin(0));
        }
        world.wait(200 * MS);
        assert_eq!(said(&world, State::Ended), [Code::MissedWakeup]);
        assert_eq!(said(&world, State::Missed), [Code::MissedWakeup]);
    }
}

#[test]
fn a_stuck_lane_is_said_once_however_long_it_lasts_and_whatever_piles_up() {
    let mut world = World::new(1);
    world.round_trips(0, 3);
    stick(&mut world);
    world.wait(200 * MS);
    for _ in 0..6 {
        stick(&mut world);
        world.wait(1000 * MS);
    }
    world.wait(60_000 * MS);
    assert_eq!(world.findings.len(), 2, "suspect and missed");
}

#[test]
fn a_hub_that_nobody_told_of_is_no_trouble() {
    let mut world = World::new(1);
    let mut seen = world.hub.clone();
    seen.hub = HubId(77);
    world.tell(Input::Hub(Box::new(seen)));
    world.wait(100 * MS);
    world.assert_clean();
}
