//! Containers: trees in namespaces of their own, and shmtrace itself inside of one.

use std::process::Command;

use serde_json::Value;

use crate::support::{Host, Kind, Ran, Target, run, shmtrace};

/// A hung host in a pid namespace with its own `/proc`, where its pid is 2.
fn contained(kind: Kind) -> Host {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    // The namespace outlives the host: its end would take whoever else is in it along.
    command.args(["bash", "-c", "\"$@\" & wait; sleep 1000", "bash"]);
    command.arg(kind.program());
    let fault: &[&str] = match kind {
        Kind::Sim => &["--fault", "consumed-then-slept:peer=1,after=50"],
        Kind::Rapace => &["--steal-after", "50:1"],
    };
    Host::start(&mut command, fault, "\"fault\"")
}

/// `shmtrace` in the namespaces of the only child of this process.
fn inside(host: &Host, namespaces: &[&str], args: &[&str]) -> Ran {
    let first = shmtrace::process::children(host.pid())[0];
    let mut enter = Command::new("nsenter");
    enter
        .args(["--target", &first.to_string()])
        .args(namespaces);
    let plain = shmtrace(args);
    enter.arg(plain.get_program()).args(plain.get_args());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => enter.env(name, value),
            None => enter.env_remove(name),
        };
    }
    Ran::from(enter.output().unwrap())
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn inside_of_a_pid_namespace_nothing_is_traced_blindly() {
    for kind in Kind::ALL {
        let host = contained(kind);
        let enter = |args: &[&str]| inside(&host, &["--pid", "--mount"], args);
        let remedy = "in a container with --pid=host";
        for args in [
            &["--duration", "1s", "--pid-tree", "2"][..],
            &[
                "record",
                "-o",
                "/dev/null",
                "--duration",
                "1s",
                "--pid-tree",
                "2",
            ],
            &["profile", "--duration", "1s", "--pid-tree", "2"],
            &["run", "--", "true"],
        ] {
            let refused = enter(args);
            assert_eq!(refused.code, Some(5), "{args:?}: {refused:?}");
            assert!(refused.stderr.contains(remedy), "{args:?}: {refused:?}");
            assert_eq!(refused.stdout, "", "{args:?}");
        }
        let doctor = enter(&["doctor"]);
        assert_eq!(doctor.code, Some(5), "{doctor:?}");
        assert!(doctor.stdout.contains(remedy), "{doctor:?}");

        // What does without probes works on the pids that are seen there.
        let dump = enter(&["dump", "--pid-tree", "2"]);
        assert!(
            dump.stdout
                .contains("missed wakeup: the doorbell's signal was lost"),
            "{dump:?}"
        );
        let inspect = enter(&["inspect", "--pid-tree", "2"]);
        assert!(inspect.stdout.contains("mapped by: 2 ("), "{inspect:?}");
        let nudge = enter(&["nudge", "--pid-tree", "2", "--peer", "1"]);
        assert!(
            nudge.stdout.contains("the signal had been lost"),
            "{nudge:?}"
        );
        let kill = enter(&["kill", "--pid-tree", "2"]);
        assert_eq!(kill.code, Some(0), "{kill:?}");
        assert!(kill.stdout.contains("[2] after SIGTERM"), "{kill:?}");
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn with_the_proc_of_the_host_trees_are_traced_and_none_is_started() {
    let host = contained(Kind::Sim);
    let hung = Host::hung(Kind::Sim);
    let watch = [
        "--duration",
        "1s",
        "--fail-on",
        "any",
        "--pid-tree",
        &hung.arg(),
    ];
    let ran = inside(&host, &["--pid"], &watch);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    let refused = inside(&host, &["--pid"], &["run", "--", "true"]);
    assert_eq!(refused.code, Some(5), "{refused:?}");
    assert!(refused.stderr.contains("--pid=host"), "{refused:?}");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_tree_in_namespaces_of_its_own_is_traced_from_outside() {
    let mut command = Command::new("unshare");
    command.args([
        "--pid",
        "--mount",
        "--net",
        "--ipc",
        "--fork",
        "--mount-proc",
        "--kill-child",
    ]);
    // A file system that nobody else sees, for the hub.
    command.args([
        "bash",
        "-c",
        "mount -t tmpfs hubs /mnt && exec \"$@\"",
        "bash",
    ]);
    command.arg(Kind::Sim.program());
    let fault = "consumed-then-slept:peer=1,after=50";
    let more = [
        "--hub",
        "/mnt/hub.shm",
        "--start-delay",
        "2s",
        "--fault",
        fault,
    ];
    let host = Host::start(&mut command, &more, "\"ready\"");
    let tree = host.arg();
    let args = ["--format", "json", "--duration", "30s", "--pid-tree", &tree];
    let mut watch = Target::start(&mut shmtrace(&args));
    let missed = std::iter::from_fn(|| serde_json::from_str::<Value>(&watch.line()).ok())
        .find(|line| line["state"] == "missed");
    let missed = missed.expect("it is found");
    assert_eq!(missed["cause"], "consumed-then-slept", "{missed:#}");
    assert_eq!(missed["peer"]["id"], 1);
    let plugin = u32::try_from(missed["peer"]["pid"].as_u64().unwrap()).unwrap();
    assert_ne!(
        plugin, host.plugins[&1],
        "the plugin knows itself by another pid"
    );
    assert!(crate::support::exists(plugin));
    let nudge = run(&["nudge", "--pid-tree", &tree, "--peer", "1"]);
    assert!(
        nudge.stdout.contains("the signal had been lost"),
        "{nudge:?}"
    );
    let kill = run(&["kill", "--pid-tree", &tree]);
    assert_eq!(kill.code, Some(0), "{kill:?}");
    assert!(!crate::support::exists(plugin));
}
