//! What each command prints, word by word, of a host on this workspace's transport and of one on rapace 0.4.
//!
//! After a change that is meant, `INSTA_UPDATE=always cargo xtask test -p shmtrace -- snapshots` writes them anew; look
//! at the difference before it is committed.

use rustix::process::Signal;

use crate::{
    steady::{assert_same, assert_steady, assert_steady_after},
    support::{Host, Kind, Ran, eventually, exists, run},
};

/// Exit code, output and diagnostics as one text.
fn all_of(ran: &Ran) -> String {
    let mut text = format!("status {}\n", ran.code.unwrap());
    if !ran.stdout.is_empty() {
        text += "--- stdout\n";
        text += &ran.stdout;
    }
    if !ran.stderr.is_empty() {
        text += "--- stderr\n";
        text += &ran.stderr;
    }
    text
}

/// Runs a command on a host's tree and compares what it printed.
fn compare(command: &str, host: &Host, kind: Kind, args: &[&str]) -> Ran {
    let ran = run(&[args, &["--pid-tree", &host.arg()]].concat());
    assert_steady(&format!("{command}_{}", kind.name()), host, &all_of(&ran));
    ran
}

#[test]
fn help_of_every_command() {
    let whole = shmtrace::cli::command();
    let names = whole.get_subcommands().map(clap::Command::get_name);
    for name in names {
        assert_same(&format!("help_{name}"), &run(&[name, "--help"]).stdout);
    }
    assert_same("help", &run(&["--help"]).stdout);
    assert_same("help_short", &run(&["-h"]).stdout);
}

#[test]
fn pages_on_findings() {
    assert_same("explain", &run(&["explain"]).stdout);
    let class = run(&["explain", "missed-wakeup"]).stdout;
    assert_same("explain_class", &class);
    assert_same("explain_cause", &run(&["explain", "stolen"]).stdout);
}

#[test]
fn manual_page() {
    assert_same("man_kill", &run(&["man", "kill"]).stdout);
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_hung_tree_seen_by_every_command() {
    for kind in Kind::ALL {
        let host = Host::hung(kind);
        compare(
            "watch_hung",
            &host,
            kind,
            &["watch", "--duration", "1s", "--fail-on", "any"],
        );
        compare("dump_hung", &host, kind, &["dump"]);
        compare("inspect_hung", &host, kind, &["inspect"]);
        record_and_replay(&host, kind);
        compare("kill_dry_run", &host, kind, &["kill", "--dry-run"]);
        compare("nudge_other", &host, kind, &["nudge", "--peer", "0"]);
        compare("nudge_hung", &host, kind, &["nudge", "--peer", "1"]);
        compare("nudge_healed", &host, kind, &["nudge", "--peer", "1"]);
    }
}

/// A recording shows what the watch showed.
fn record_and_replay(host: &Host, kind: Kind) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hang.rec");
    let file = file.to_str().unwrap();
    compare(
        "record_hung",
        host,
        kind,
        &["record", "-o", file, "--duration", "1s"],
    );
    let ran = run(&["replay", "--fail-on", "any", file]);
    assert_steady(&format!("replay_hung_{}", kind.name()), host, &all_of(&ran));
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_host_that_is_run() {
    for kind in Kind::ALL {
        let folder = tempfile::tempdir().unwrap();
        let hub = folder.path().join("hub.shm");
        let program = kind.program();
        let start = [
            "run",
            "--",
            program.to_str().unwrap(),
            "host",
            "--plugins",
            "2",
        ];
        let traffic = [
            "--round-trips",
            "200",
            "--gap",
            "3ms",
            "--hub",
            hub.to_str().unwrap(),
        ];
        let mut ran = run(&[&start[..], &traffic].concat());
        // What the host itself prints.
        let own = ran.stdout.split_inclusive('\n');
        ran.stdout = own.filter(|line| !line.starts_with('{')).collect();
        assert_steady_after(&format!("run_{}", kind.name()), &all_of(&ran));
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn what_a_profile_says_beside_its_graph() {
    let host = Host::healthy(Kind::Rapace);
    let folder = tempfile::tempdir().unwrap();
    for (name, more) in [("profile", None), ("profile_off_cpu", Some("--off-cpu"))] {
        let file = folder.path().join("graph.svg");
        let mut args = vec!["profile", "--duration", "1s", "-o", file.to_str().unwrap()];
        args.extend(more);
        let tree = host.arg();
        args.extend(["--pid-tree", &tree]);
        let ran = run(&args);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        // How many stacks are usable depends on how the C library was built.
        let first = ran.stderr.lines().next().unwrap();
        assert_steady_after(name, first);
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn what_doctor_looks_at() {
    // Answers and details are those of the machine.
    let ran = run(&["doctor"]);
    let names = ran.stdout.lines().map(|line| {
        let of_a_check = ["yes ", "limited ", "no "]
            .iter()
            .any(|answer| line.starts_with(answer));
        match of_a_check {
            true => format!(
                "[answer]  {}\n",
                line.get(9..35).unwrap_or_default().trim_end()
            ),
            false if line.trim_start().starts_with("remedy: ") => String::new(),
            false => format!("{line}\n"),
        }
    });
    assert_same("doctor", &names.collect::<String>());
}

#[test]
fn stale_hubs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    for name in ["dodeca-hub-1.shm", "notes.shm"] {
        let content: &[u8] = if name == "notes.shm" {
            b"no hub"
        } else {
            b"RAPAHUB\0"
        };
        std::fs::write(folder.path().join(name), [content, &[0; 4088]].concat()).unwrap();
    }
    let stale = ["kill", "--stale", "--hub-dir", path];
    assert_steady_after(
        "kill_stale_dry_run",
        &all_of(&run(&[&stale[..], &["--dry-run"]].concat())),
    );
    assert_steady_after("kill_stale", &all_of(&run(&stale)));
    assert_steady_after("kill_stale_again", &all_of(&run(&stale)));
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_stopped_and_a_half_dead_tree_dumped() {
    for kind in Kind::ALL {
        let host = Host::hung(kind);
        let plugin = host.plugins[&0];
        host.signal(plugin, Signal::KILL);
        assert!(eventually(|| !exists(plugin)));
        // The hosts do not look after their plugins any more: the entry of the dead one stays.
        host.signal(host.pid(), Signal::STOP);
        let stat = format!("/proc/{}/stat", host.pid());
        assert!(eventually(|| std::fs::read_to_string(&stat)
            .unwrap()
            .contains(") T ")));
        compare("dump_half_dead", &host, kind, &["dump"]);
        let ran = run(&["kill", "--pid-tree", &host.arg()]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_healthy_tree_accused_of_nothing() {
    for kind in Kind::ALL {
        let host = Host::healthy(kind);
        compare(
            "watch_healthy",
            &host,
            kind,
            &["watch", "--duration", "1s", "--fail-on", "any"],
        );
        let ran = run(&["kill", "--pid-tree", &host.arg()]);
        // They end in any order.
        let mut lines: Vec<&str> = ran.stdout.lines().collect();
        lines.sort_unstable();
        assert_steady(&format!("kill_{}", kind.name()), &host, &lines.join("\n"));
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn doctor_plants_each_fault_and_finds_it() {
    let ran = run(&["doctor", "--self-test", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap().iter();
    let planted: Vec<_> = checks
        .filter(|check| check["name"].as_str().unwrap().starts_with("finds "))
        .collect();
    assert_eq!(planted.len(), 15, "{ran:?}");
    assert!(
        planted.iter().all(|check| check["answer"] == "yes"),
        "{planted:#?}"
    );
    assert_eq!(ran.code, Some(0), "{ran:?}");
}
