//! Real rapace processes: healthy calls, and a wakeup that is really missed.

use sim_kit::look;
use sim_kit::stage::{Stage, doorbell_of, rings, tokens};

const PROGRAMS: [&str; 2] = [
    env!("CARGO_BIN_EXE_rapace-peer-04"),
    env!("CARGO_BIN_EXE_rapace-peer-05"),
];

#[test]
fn calls_come_back_unharmed_and_nothing_is_left() {
    for program in PROGRAMS {
        for runtime in ["multi", "current"] {
            let runtime = format!("--runtime={runtime}");
            let arguments = [
                "--plugins=3",
                "--round-trips=3000",
                "--payload=0..64K",
                "--in-flight=3",
                &runtime,
            ];
            let mut stage = Stage::start(program, arguments).expect("it starts");
            let plugins = stage.plugins().expect("plugins");
            let names: Vec<_> = plugins
                .iter()
                .map(|plugin| (plugin.peer, plugin.name.as_str()))
                .collect();
            assert_eq!(
                names,
                [
                    (0, "dodeca-mod-css"),
                    (1, "dodeca-mod-html"),
                    (2, "dodeca-mod-image")
                ]
            );
            let done = stage.event("done").expect("it ends");
            assert_eq!(done["round_trips"], 3000);
            assert_eq!(
                (&done["mismatched"], &done["unexpected"], &done["lost"]),
                (&0.into(), &0.into(), &0.into())
            );
            assert!(stage.finish().expect("a clean end").success());
        }
    }
}

// Inline payloads only: the versions disagree about slots.
#[test]
fn either_version_is_served_by_the_others_host() {
    for (host, plugin) in [(0, 1), (1, 0)] {
        let foreign = format!("--plugin-cmd={} plugin", PROGRAMS[plugin]);
        let arguments = [
            "--plugins=2",
            "--round-trips=1000",
            "--payload=0..16",
            &foreign,
        ];
        let mut stage = Stage::start(PROGRAMS[host], arguments).expect("it starts");
        assert_eq!(stage.event("done").expect("it ends")["round_trips"], 1000);
        assert!(stage.finish().expect("a clean end").success());
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_stolen_token_leaves_the_plugin_asleep_before_a_full_ring() {
    for program in PROGRAMS {
        for runtime in ["multi", "current"] {
            let runtime = format!("--plugin-runtime={runtime}");
            let arguments = [
                "--plugins=2",
                "--round-trips=0",
                "--gap=1ms",
                "--steal-after=20:1",
                &runtime,
            ];
            let mut stage = Stage::start(program, arguments).expect("it starts");
            let fault = stage.event("fault").expect("a fault");
            assert_eq!(
                (&fault["fault"], &fault["peer"]),
                (&"stolen".into(), &1.into())
            );
            let pid = stage.plugins().expect("plugins")[1].pid;
            let hub = stage.hub().expect("a hub");
            let look = || {
                (
                    rings(&hub, 1).expect("rings"),
                    tokens(pid, doorbell_of(pid).expect("fd")).expect("tokens"),
                )
            };
            let ((to_peer, to_host), (queued, _)) = look();
            assert_eq!((to_peer.len(), to_host.len(), queued), (1, 0, false));
            assert!(look::is_idle(pid));
            // Nothing inside the lane can end it.
            std::thread::sleep(std::time::Duration::from_millis(300));
            assert_eq!(look().0, (to_peer, to_host));
            assert!(look::is_idle(pid));
            assert!(stage.end().expect("a clean end").success());
        }
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn one_more_ring_heals_it() {
    for program in PROGRAMS {
        let arguments = [
            "--plugins=2",
            "--round-trips=500",
            "--steal-after=20:1",
            "--thief=host",
            "--heal-after=50ms",
        ];
        let mut stage = Stage::start(program, arguments).expect("it starts");
        stage.event("healed").expect("healed");
        assert_eq!(stage.event("done").expect("it ends")["round_trips"], 500);
        assert!(stage.finish().expect("a clean end").success());
    }
}
