//! What each command prints, word by word, of a host on this workspace's transport and of one on rapace 0.4.
//!
//! After a change that is meant, `INSTA_UPDATE=always cargo xtask test -p shmtrace -- snapshots` writes them anew; look
//! at the difference before it is committed.

use rustix::process::Signal;

use crate::{
    steady::{assert_same, assert_steady},
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
        compare("kill_dry_run", &host, kind, &["kill", "--dry-run"]);
        compare("nudge_other", &host, kind, &["nudge", "--peer", "0"]);
        compare("nudge_hung", &host, kind, &["nudge", "--peer", "1"]);
        compare("nudge_healed", &host, kind, &["nudge", "--peer", "1"]);
    }
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
