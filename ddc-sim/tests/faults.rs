//! Every fault is what it claims to be: the rings, the doorbell's queue and the threads, looked at from outside, stay
//! in the state that the tracer is meant to find. No tracer is involved.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use sim_kit::look;
use sim_kit::stage::{RingLook, Stage, doorbell_of, rings, tokens};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ddc-sim");

/// What the plugin does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    /// Every thread sleeps, one of them in epoll.
    Idles,
    /// Its main thread sleeps, none is in epoll.
    Blocks,
    /// Anything else.
    Works,
    /// Its process is gone.
    Nothing,
}

/// What is seen of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    /// The lane that was hit, and the other one of that peer.
    hit: RingLook,
    other: RingLook,
    /// A token is queued for the consumer.
    token: bool,
    plugin: Does,
}

fn look(hub: &Path, peer: u16, pid: u32, to_host: bool) -> Look {
    let (to_peer, from_peer) = rings(hub, peer).expect("rings");
    let (hit, other) = if to_host {
        (from_peer, to_peer)
    } else {
        (to_peer, from_peer)
    };
    let Ok(threads) = look::threads(pid) else {
        return Look {
            hit,
            other,
            token: false,
            plugin: Does::Nothing,
        };
    };
    let (queued, unread) = tokens(pid, doorbell_of(pid).expect("a doorbell")).expect("tokens");
    let plugin = if look::is_idle(pid) {
        Does::Idles
    } else if threads
        .iter()
        .any(|thread| thread.tid == pid && thread.blocks())
    {
        Does::Blocks
    } else {
        Does::Works
    };
    Look {
        hit,
        other,
        token: if to_host { unread } else { queued },
        plugin,
    }
}

/// Plants a fault, waits, and hands what is seen to `check`: twice, since a hang does not change.
fn planted(fault: &str, options: &[&str], check: impl Fn(&Look) -> bool) {
    let spec = format!("--fault={fault}");
    let mut arguments = vec!["--plugins=3", "--calls=0", "--gap=1ms", &spec];
    arguments.extend(options);
    let mut stage = Stage::start(PROGRAM, arguments).expect("it starts");
    let line = stage
        .event("fault")
        .unwrap_or_else(|error| panic!("{fault}: {error:#}"));
    let number = |field: &str| {
        line[field]
            .as_u64()
            .unwrap_or_else(|| panic!("{field} of {line}"))
    };
    let (peer, pid) = (number("peer") as u16, number("pid") as u32);
    assert_eq!(
        line["fault"],
        fault.split(':').next().map_or(Value::Null, Value::from)
    );
    let hub = stage.hub().expect("a hub");
    let to_host = line["lane"] == "peer->host";
    let first = look(&hub, peer, pid, to_host);
    assert!(
        check(&first),
        "{fault} {options:?} is in place, but: {first:?}"
    );
    std::thread::sleep(Duration::from_millis(250));
    let later = look(&hub, peer, pid, to_host);
    assert_eq!(
        (later.hit, later.token),
        (first.hit, first.token),
        "{fault} {options:?} does not last"
    );
    assert!(
        check(&later),
        "{fault} {options:?} does not last: {later:?}"
    );
    assert!(
        stage.end().expect("a clean end").success(),
        "{fault} {options:?}"
    );
}

const RUNTIMES: [&[&str]; 3] = [
    &[],
    &["--runtime=current", "--plugin-runtime=multi"],
    &["--after-fault=continue", "--in-flight=2"],
];

/// An entry waits, no token is queued, the plugin sleeps: nothing inside the lane can end that.
fn stuck(seen: &Look) -> bool {
    seen.hit.len() == 1 && !seen.token && seen.plugin == Does::Idles
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn lost_wakeups_to_the_peer() {
    for options in RUNTIMES {
        for fault in [
            "consumed-then-slept:peer=1",
            "consumed-then-slept:peer=1,variant=drain-twice",
            "rung-before-publish:peer=random,after=random",
            "never-rung:peer=0",
            "ring-failed:peer=2,variant=refused",
            "ring-failed:peer=2,variant=pipe",
            "ring-failed:peer=2,variant=badfd",
            "wrong-doorbell:peer=1",
            "stolen:peer=1,variant=producer",
            "stolen:peer=1",
        ] {
            planted(fault, options, stuck);
        }
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn lost_wakeups_to_the_host() {
    for options in RUNTIMES {
        for fault in [
            "consumed-then-slept:peer=1,lane=peer->host",
            "consumed-then-slept:peer=1,lane=peer->host,variant=drain-twice",
            "rung-before-publish:peer=1,lane=peer->host",
            "never-rung:peer=1,lane=peer->host",
            "ring-failed:peer=1,lane=peer->host,variant=refused",
            "ring-failed:peer=1,lane=peer->host,variant=pipe",
            "ring-failed:peer=1,lane=peer->host,variant=badfd",
            "stolen:peer=1,lane=peer->host",
            "stolen:peer=1,lane=peer->host,variant=producer",
        ] {
            planted(fault, options, stuck);
        }
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn producers_and_peers_that_died() {
    planted("never-rung-dead:peer=1", &[], |seen| {
        seen.plugin == Does::Nothing && seen.hit.len() == 1
    });
    planted("peer-died:peer=1", &[], |seen| {
        seen.plugin == Does::Nothing && seen.hit.is_empty()
    });
    planted("peer-died:peer=1,variant=call-open", &[], |seen| {
        seen.plugin == Does::Nothing && seen.hit.is_empty()
    });
    planted("peer-died:peer=1,variant=entries-left", &[], |seen| {
        seen.plugin == Does::Nothing && seen.hit.len() == 1
    });
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn tokens_that_stay_queued() {
    for options in RUNTIMES {
        for variant in ["unregistered", "edge-lost"] {
            for lane in ["host->peer", "peer->host"] {
                let ignored =
                    |seen: &Look| seen.hit.len() == 1 && seen.token && seen.plugin == Does::Idles;
                planted(
                    &format!("not-draining:peer=1,lane={lane},variant={variant}"),
                    options,
                    ignored,
                );
            }
        }
    }
    for variant in ["wait4", "pipe", "nanosleep", "futex"] {
        let blocked =
            |seen: &Look| seen.hit.len() == 1 && seen.token && seen.plugin == Does::Blocks;
        planted(
            &format!("consumer-blocked:peer=1,variant={variant}"),
            &[],
            blocked,
        );
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn calls_without_an_answer() {
    let quiet = |seen: &Look| {
        seen.hit.is_empty() && seen.other.is_empty() && !seen.token && seen.plugin == Does::Idles
    };
    planted("never-enqueued:peer=1", &[], quiet);
    planted("unanswered:peer=1", &[], quiet);
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn rings_without_room() {
    let full = |seen: &Look| seen.hit.len() == seen.hit.capacity;
    planted("ring-full:peer=1", &[], |seen| {
        full(seen) && seen.plugin == Does::Blocks
    });
    planted(
        "ring-full:peer=1,variant=asleep",
        &["--ring-capacity=8"],
        |seen| full(seen) && seen.plugin == Does::Idles,
    );
    planted(
        "ring-full:peer=1,lane=peer->host",
        &["--ring-capacity=8"],
        full,
    );
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn rings_that_cannot_be() {
    for lane in ["host->peer", "peer->host"] {
        let corrupt = |variant| format!("ring-corrupt:peer=1,lane={lane},variant={variant}");
        planted(&corrupt("tail-past-head"), &[], |seen| {
            seen.hit.tail == seen.hit.head + 1
        });
        planted(&corrupt("overfull"), &[], |seen| {
            seen.hit.len() == seen.hit.capacity + 1
        });
        planted(&corrupt("head-back"), &[], |seen| seen.hit.len() == 2);
        planted(&corrupt("overwritten"), &[], |seen| seen.hit.len() == 3);
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_masked_one_heals_and_all_calls_are_answered() {
    for lane in ["host->peer", "peer->host"] {
        let fault = format!("--fault=masked:peer=random,after=random,lane={lane},for=10ms");
        let mut stage =
            Stage::start(PROGRAM, ["--plugins=2", "--calls=400", &fault]).expect("it starts");
        stage.event("healed").expect("healed");
        assert_eq!(stage.event("done").expect("it ends")["round_trips"], 400);
        assert!(stage.finish().expect("a clean end").success());
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_starved_plugin_wants_to_run() {
    for variant in ["idle-class", "quota"] {
        let fault = format!("--fault=starved:peer=1,variant={variant}");
        let mut stage = Stage::start(PROGRAM, ["--plugins=2", "--calls=0", "--gap=1ms", &fault])
            .expect("it starts");
        let pid = stage.event("fault").expect("a fault")["pid"]
            .as_u64()
            .expect("a pid") as u32;
        let wants = || {
            std::thread::sleep(Duration::from_millis(2));
            look::threads(pid)
                .expect("threads")
                .iter()
                .any(|thread| thread.state == 'R')
        };
        let wanted = (0..200).filter(|_| wants()).count();
        assert!(
            wanted > 100,
            "{variant}: wanted to run at {wanted} of 200 looks"
        );
        assert!(stage.end().expect("a clean end").success());
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_tree_at_its_memory_limit_goes_on() {
    let arguments = [
        "--plugins=2",
        "--calls=0",
        "--gap=1ms",
        "--fault=memory-limit:peer=0",
        "--after-fault=continue",
    ];
    let mut stage = Stage::start(PROGRAM, arguments).expect("it starts");
    stage.event("fault").expect("a fault");
    let pid = stage.plugins().expect("plugins")[0].pid;
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("control groups");
    let group = groups
        .lines()
        .find(|line| line.contains("ddc-sim-"))
        .expect("a group of its own");
    let (v1, path) = match group.split(':').collect::<Vec<_>>()[..] {
        [_, "", path] => (false, format!("/sys/fs/cgroup{path}")),
        [_, _, path] => (true, format!("/sys/fs/cgroup/memory{path}")),
        _ => panic!("{group}"),
    };
    let events = if v1 {
        "memory.oom_control"
    } else {
        "memory.events"
    };
    let events = std::fs::read_to_string(format!("{path}/{events}")).expect("memory events");
    assert!(events.lines().any(|line| line == "oom_kill 1"), "{events}");
    assert!(stage.end().expect("a clean end").success());
    assert!(!Path::new(&path).exists(), "{path} is left behind");
}
