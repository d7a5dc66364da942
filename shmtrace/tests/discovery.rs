//! Discovery and observation of real processes: hosts and plugins on the published rapace crates.

mod support;

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use shmtrace::{
    discover::{Changes, Discovery, Hint, ProbeUpdate, Side},
    observe::{Observer, mono_now},
    process::Process,
};
use shmtrace_engine::{
    Direction, HubId, LaneId, PeerId,
    input::{PeerBinding, Topology, WaitsFor},
};
use sim_kit::look;
use support::Peers;

/// Refreshes until all of `peers` peers are bound, at most for 5 s.
fn discover(discovery: &mut Discovery, trees: &[&Peers], peers: usize) -> Changes {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut all = Changes::default();
    loop {
        let live: Vec<u32> = trees.iter().flat_map(|peers| peers.tree()).collect();
        let changes = discovery.refresh(mono_now(), &live);
        all.topology.extend(changes.topology);
        all.probes.extend(changes.probes);
        all.notes.extend(changes.notes);
        let certain = discovery
            .bindings()
            .filter(|binding| binding.certain)
            .count();
        if certain >= peers {
            return all;
        }
        let bindings: Vec<_> = discovery.bindings().collect();
        assert!(
            Instant::now() < deadline,
            "after 5 s: {bindings:#?}\n{:?}",
            all.notes
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn plugin_pids(discovery: &Discovery) -> BTreeMap<u16, u32> {
    let bound = |binding: &PeerBinding| Some((binding.peer.0, binding.plugin?.pid));
    discovery.bindings().filter_map(bound).collect()
}

/// The binding is right: processes, and who holds which end.
fn check(binding: &PeerBinding, host: u32) {
    let sockets = |pid| {
        Process::open(pid)
            .unwrap()
            .sockets(&mut Vec::new())
            .unwrap()
            .held
    };
    let holds = |pid, end| sockets(pid).iter().any(|held| Some(held.inode) == end);
    assert_eq!(binding.host.unwrap().pid, host);
    assert!(holds(host, binding.host_end), "{binding:?}");
    assert!(
        holds(binding.plugin.unwrap().pid, binding.plugin_end),
        "{binding:?}"
    );
    assert_ne!(binding.host_end, binding.plugin_end);
    assert!(binding.certain);
}

#[test]
fn hosts_and_plugins_of_both_rapace_versions_are_found() {
    for version in ["04", "05"] {
        let mut peers = Peers::start(
            version,
            &["--plugins", "4", "--round-trips", "0", "--gap", "1ms"],
        );
        peers.wait_for("ready");
        let mut discovery = Discovery::new();
        let changes = discover(&mut discovery, &[&peers], 4);
        assert_eq!(plugin_pids(&discovery), peers.plugins());
        for binding in discovery.bindings() {
            check(binding, peers.pid());
            assert!(binding.name.starts_with("dodeca-mod-"), "{}", binding.name);
        }
        assert_eq!(
            discovery
                .hubs()
                .map(shmtrace::discover::Hub::path)
                .collect::<Vec<_>>(),
            [peers.hub()]
        );
        let doorbells = |side| {
            let is = |update: &&ProbeUpdate| matches!(update, ProbeUpdate::Doorbell { side: s, .. } if *s == side);
            changes.probes.iter().filter(is).count()
        };
        assert_eq!((doorbells(Side::Host), doorbells(Side::Plugin)), (4, 4));
        assert_eq!(changes.notes, Vec::<String>::new());

        // When nothing changes, nothing is said.
        let changes = discovery.refresh(mono_now(), &peers.tree());
        assert!(
            changes.topology.is_empty() && changes.probes.is_empty(),
            "{changes:?}"
        );
        let mut samples = Vec::new();
        discovery.samples(mono_now(), &mut samples);
        assert_eq!(samples.len(), 8, "all lanes moved");
    }
}

#[test]
fn the_only_plugin_is_found_without_any_argument() {
    let mut peers = Peers::start(
        "04",
        &[
            "--plugins",
            "1",
            "--round-trips",
            "0",
            "--gap",
            "1ms",
            "--no-args",
        ],
    );
    peers.wait_for("ready");
    let mut discovery = Discovery::new();
    discover(&mut discovery, &[&peers], 1);
    assert_eq!(plugin_pids(&discovery), peers.plugins());
    check(discovery.bindings().next().unwrap(), peers.pid());
}

#[test]
fn several_plugins_without_arguments_wait_for_inference_and_are_observed_together() {
    let mut peers = Peers::start(
        "04",
        &[
            "--plugins",
            "3",
            "--round-trips",
            "0",
            "--gap",
            "1ms",
            "--no-args",
        ],
    );
    peers.wait_for("ready");
    let mut discovery = Discovery::new();
    for _ in 0..5 {
        discovery.refresh(mono_now(), &peers.tree());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(discovery.wants_rings());
    assert_eq!(
        discovery
            .bindings()
            .filter(|binding| binding.host.is_some())
            .count(),
        3
    );
    assert!(
        discovery
            .bindings()
            .all(|binding| binding.plugin.is_none() && !binding.certain)
    );
    let lane = LaneId {
        hub: HubId(1),
        peer: PeerId(1),
        direction: Direction::ToPeer,
    };
    // A signal on its way to any of the three would leave it open whether one waits for this consumer.
    let host = rustix::process::Pid::from_raw(peers.pid().cast_signed()).unwrap();
    rustix::process::kill_process(host, Signal::STOP).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    let idle = |pid: &u32| look::is_idle(*pid);
    while !(look::is_stopped(peers.pid()) && peers.plugins().values().all(idle)) {
        assert!(Instant::now() < deadline, "plugins come to rest");
        std::thread::sleep(Duration::from_millis(1));
    }
    let seen = Observer::new().lane(&mut discovery, lane).unwrap();
    assert_eq!(seen.consumer.proc, None);
    assert_eq!(seen.consumer.threads.len(), 3, "one of each candidate");
    assert_eq!(seen.token, Some(false));
    assert!(!seen.missing.is_empty());
    rustix::process::kill_process(host, Signal::CONT).unwrap();
}

#[test]
fn two_hubs_in_one_tree_are_kept_apart_and_one_that_comes_later_is_found() {
    let mut first = Peers::start(
        "04",
        &["--plugins", "2", "--round-trips", "0", "--gap", "1ms"],
    );
    first.wait_for("ready");
    let mut discovery = Discovery::new();
    discover(&mut discovery, &[&first], 2);
    let mut second = Peers::start(
        "05",
        &["--plugins", "3", "--round-trips", "0", "--gap", "1ms"],
    );
    let begun = Instant::now();
    second.wait_for("ready");
    let changes = discover(&mut discovery, &[&first, &second], 5);
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert_eq!(discovery.hubs().count(), 2);
    let host_of = |hub: u32| discovery.hub(HubId(hub)).unwrap().host().unwrap().pid;
    assert_eq!((host_of(1), host_of(2)), (first.pid(), second.pid()));
    assert!(
        changes
            .topology
            .iter()
            .any(|topology| matches!(topology, Topology::Hub { hub: HubId(2), .. }))
    );

    let gone = first.pid();
    drop(first);
    let changes = discovery.refresh(mono_now(), &second.tree());
    assert!(
        changes
            .topology
            .contains(&Topology::HubGone { hub: HubId(1) }),
        "{gone}: {changes:?}"
    );
    assert!(
        changes
            .probes
            .iter()
            .any(|update| matches!(update, ProbeUpdate::Forget { .. }))
    );
    assert_eq!(discovery.hubs().count(), 1);
}

#[test]
fn plugins_that_are_killed_and_come_back_are_followed() {
    let mut peers = Peers::start(
        "04",
        &[
            "--plugins",
            "3",
            "--round-trips",
            "0",
            "--gap",
            "1ms",
            "--restart-every",
            "300ms",
        ],
    );
    peers.wait_for("ready");
    let mut discovery = Discovery::new();
    discover(&mut discovery, &[&peers], 3);
    let first = peers.plugins();
    // Four restarts later.
    for _ in 0..4 {
        peers.wait_for("plugin");
    }
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        let tree = peers.tree();
        // As the probes do: one that was seen between its exec and its mmap is otherwise not looked at for seconds.
        for pid in &tree {
            discovery.hint(Hint::Mapped { pid: *pid });
        }
        discovery.refresh(mono_now(), &tree);
        let bound = plugin_pids(&discovery);
        let alive = |pid: &u32| Process::open(*pid).is_ok_and(|process| process.is_alive());
        // All plugins that live now, each bound to some peer.
        let living: Vec<u32> = peers.tree().into_iter().skip(1).filter(alive).collect();
        let found = living
            .iter()
            .all(|pid| bound.values().any(|bound| bound == pid));
        if found
            && living.len() == 3
            && living
                .iter()
                .any(|pid| !first.values().any(|old| old == pid))
        {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "living {living:?}, bound {bound:?}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The heart of it: a real lost wakeup in real rapace processes, seen from outside.
#[test]
fn a_lane_whose_token_was_stolen_is_seen_stuck() {
    let mut peers = Peers::start(
        "04",
        &[
            "--plugins",
            "4",
            "--round-trips",
            "0",
            "--gap",
            "200us",
            "--steal-after",
            "50:2",
        ],
    );
    let fault = peers.wait_for("fault");
    assert_eq!(fault["peer"], 2);
    let mut discovery = Discovery::new();
    discover(&mut discovery, &[&peers], 4);
    let mut observer = Observer::new();
    let mut stuck = Vec::new();
    for id in 0..4 {
        for direction in [Direction::ToPeer, Direction::ToHost] {
            let lane = LaneId {
                hub: HubId(1),
                peer: PeerId(id),
                direction,
            };
            let seen = observer.lane(&mut discovery, lane).unwrap();
            assert!(seen.hub_intact);
            assert_eq!(
                (seen.before, seen.token, &seen.missing),
                (seen.after, Some(false), &Vec::new())
            );
            if !seen.before.is_empty() {
                stuck.push(lane);
            }
        }
    }
    let lane = LaneId {
        hub: HubId(1),
        peer: PeerId(2),
        direction: Direction::ToPeer,
    };
    assert_eq!(stuck, [lane]);

    let first = observer.lane(&mut discovery, lane).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let second = observer.lane(&mut discovery, lane).unwrap();
    assert_eq!(first.after, second.before);
    let [thread] = &second.consumer.threads[..] else {
        panic!("{:?}", second.consumer)
    };
    assert_eq!(
        (thread.state, thread.waits_for, thread.ran_meanwhile),
        ('S', WaitsFor::Doorbell, false)
    );
    assert_eq!(
        thread.runs, first.consumer.threads[0].runs,
        "it did not run in between"
    );
    assert!(second.consumer.alive && second.producer.alive);
    assert_eq!(second.consumer.proc.unwrap().pid, peers.plugins()[&2]);

    let hub = observer.hub(&mut discovery, HubId(1)).unwrap();
    assert_eq!(hub.violations, []);
    assert_eq!(hub.all_asleep, Some(true));
    assert!(hub.peers.iter().all(|peer| peer.alive == Some(true)));
    let waiting: Vec<_> = hub
        .calls
        .iter()
        .filter(|call| call.waiting)
        .map(|call| call.lane)
        .collect();
    assert_eq!(waiting, [lane]);
    // What was reported is not new any more; what waits still waits.
    let again = observer.hub(&mut discovery, HubId(1)).unwrap();
    assert_eq!(again.calls.len(), 1);
}

#[test]
fn a_plugin_that_is_killed_keeps_its_entry_and_is_seen_dead() {
    let mut peers = Peers::start(
        "04",
        &["--plugins", "2", "--round-trips", "0", "--gap", "1ms"],
    );
    peers.wait_for("ready");
    let mut discovery = Discovery::new();
    discover(&mut discovery, &[&peers], 2);
    // The host is stopped, so that it cannot notice.
    let host = rustix::process::Pid::from_raw(peers.pid().cast_signed()).unwrap();
    rustix::process::kill_process(host, Signal::STOP).unwrap();
    let victim = peers.plugins()[&1];
    let pid = rustix::process::Pid::from_raw(victim.cast_signed()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    while Process::open(victim).is_ok_and(|process| process.is_alive()) {
        std::thread::yield_now();
    }
    let live: Vec<u32> = peers
        .tree()
        .into_iter()
        .filter(|pid| *pid != victim)
        .collect();
    discovery.refresh(mono_now(), &live);
    let binding = discovery
        .bindings()
        .find(|binding| binding.peer == PeerId(1))
        .unwrap();
    assert_eq!(
        binding.plugin.unwrap().pid,
        victim,
        "its entry still says active"
    );
    let hub = Observer::new().hub(&mut discovery, HubId(1)).unwrap();
    let alive: Vec<_> = hub.peers.iter().map(|peer| peer.alive).collect();
    assert_eq!(alive, [Some(true), Some(false)]);
    rustix::process::kill_process(host, Signal::CONT).unwrap();
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_hub_whose_file_was_deleted_or_replaced_is_still_read() {
    for replace in [false, true] {
        let mut peers = Peers::start(
            "04",
            &["--plugins", "2", "--round-trips", "0", "--gap", "1ms"],
        );
        peers.wait_for("ready");
        fs::remove_file(peers.hub()).unwrap();
        if replace {
            fs::write(peers.hub(), "something else").unwrap();
        }
        let mut discovery = Discovery::new();
        discover(&mut discovery, &[&peers], 2);
        assert_eq!(plugin_pids(&discovery), peers.plugins());
        let lane = LaneId {
            hub: HubId(1),
            peer: PeerId(0),
            direction: Direction::ToPeer,
        };
        let seen = Observer::new().lane(&mut discovery, lane).unwrap();
        assert!(seen.hub_intact && seen.before.head > 0);
        let _gone = fs::remove_file(peers.hub());
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn trees_in_namespaces_of_their_own_are_found() {
    let mut peers = Peers::start_under(
        &[
            "unshare",
            "--net",
            "--pid",
            "--mount",
            "--fork",
            "--kill-child",
        ],
        "04",
        &["--plugins", "3", "--round-trips", "0", "--gap", "1ms"],
    );
    peers.wait_for("ready");
    let mut discovery = Discovery::new();
    let changes = discover(&mut discovery, &[&peers], 3);
    assert_eq!(changes.notes, Vec::<String>::new());
    // unshare's child is the host; its plugins know themselves by other pids than we do.
    let host = shmtrace::process::children(peers.pid())[0];
    for binding in discovery.bindings() {
        check(binding, host);
    }
    let inner = peers.plugins();
    for (peer, pid) in plugin_pids(&discovery) {
        let pids = Process::open(pid).unwrap().namespace_pids().unwrap();
        assert_eq!(pids.last(), Some(&inner[&peer]));
    }
    let lane = LaneId {
        hub: HubId(1),
        peer: PeerId(0),
        direction: Direction::ToHost,
    };
    let seen = Observer::new().lane(&mut discovery, lane).unwrap();
    assert!(seen.token.is_some(), "{:?}", seen.missing);
}

/// The file shrinks to nothing under host, plugins and us: they die, we do not.
#[test]
fn a_hub_that_is_truncated_while_it_is_observed_harms_only_its_owners() {
    let mut peers = Peers::start(
        "04",
        &["--plugins", "2", "--round-trips", "0", "--gap", "1ms"],
    );
    peers.wait_for("ready");
    let mut discovery = Discovery::new();
    discover(&mut discovery, &[&peers], 2);
    // Stopped, so that they do not notice and stay mapped.
    for pid in peers.tree() {
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
        rustix::process::kill_process(pid, Signal::STOP).unwrap();
    }
    fs::File::options()
        .write(true)
        .open(peers.hub())
        .unwrap()
        .set_len(0)
        .unwrap();
    let lane = LaneId {
        hub: HubId(1),
        peer: PeerId(0),
        direction: Direction::ToPeer,
    };
    let mut observer = Observer::new();
    let seen = observer.lane(&mut discovery, lane).unwrap();
    assert!(!seen.hub_intact && !seen.missing.is_empty(), "{seen:?}");
    let hub = observer.hub(&mut discovery, HubId(1)).unwrap();
    assert!(!hub.violations.is_empty());
    let mut samples = Vec::new();
    discovery.samples(mono_now(), &mut samples);
    discovery.refresh(mono_now(), &peers.tree());
    let hub = peers.hub();
    for pid in peers.tree() {
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
    }
    drop(peers);
    let _gone = fs::remove_file(hub);
}
