//! What is shown and what is judged are two things: `--code`, `--lane`, `--peer` and `--quiet` change the first only.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{Host, Kind, Ran, Target, run, shmtrace};

/// A watch of a hung host, for as long as it takes to prove it.
fn watch(host: &Host, more: &[&str]) -> Ran {
    let args = ["--duration", "1s", "--fail-on", "any", "--pid-tree"];
    run(&[&args[..], &[&host.arg()], more].concat())
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn filters_hide_and_the_verdict_stays() {
    for kind in Kind::ALL {
        let host = Host::hung(kind);
        for shows in [
            &["--code", "missed-wakeup"][..],
            &["--code", "ring-full,missed-wakeup"],
            &["--peer", "1"],
            &["--peer", "0,1"],
            &["--lane", "host->peer"],
            &["--lane", "to-peer"],
        ] {
            let ran = watch(&host, shows);
            assert_eq!(ran.code, Some(3), "{shows:?}: {ran:?}");
            assert!(
                ran.stdout.contains("MISSED missed-wakeup"),
                "{shows:?}: {ran:?}"
            );
        }
        for hides in [
            &["--code", "ring-full"][..],
            &["--peer", "0"],
            &["--lane", "peer->host"],
        ] {
            let ran = watch(&host, hides);
            assert_eq!(ran.code, Some(3), "{hides:?}: {ran:?}");
            assert!(!ran.stdout.contains("MISSED"), "{hides:?}: {ran:?}");
            assert!(
                ran.stdout.contains("1 missed-wakeup in "),
                "it is counted: {ran:?}"
            );
        }
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn exit_codes_are_those_of_the_interface() {
    let hung = Host::hung(Kind::Rapace);
    let tree = hung.arg();
    for (fail_on, code) in [
        ("missed-wakeup", 3),
        ("any", 3),
        ("ring-full", 0),
        ("masked", 0),
    ] {
        let ran = run(&[
            "--duration",
            "1s",
            "--fail-on",
            fail_on,
            "--pid-tree",
            &tree,
        ]);
        assert_eq!(ran.code, Some(code), "{fail_on}: {ran:?}");
    }
    assert_eq!(
        run(&["--duration", "1s", "--pid-tree", &tree]).code,
        Some(0)
    );
    let mut other = Target::script("echo up; sleep 100");
    other.line();
    let blind = run(&["--duration", "200ms", "--pid-tree", &other.arg()]);
    assert_eq!(blind.code, Some(4), "nothing could be judged: {blind:?}");
    assert!(
        blind.stderr.contains("no process of the tree maps a hub"),
        "{blind:?}"
    );
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn quiet_leaves_findings_only() {
    let hung = Host::hung(Kind::Sim);
    let ran = watch(&hung, &["--quiet"]);
    assert!(ran.stdout.starts_with("f1 MISSED missed-wakeup"), "{ran:?}");
    assert_eq!(ran.stdout.matches("\nf").count(), 0, "{ran:?}");
    assert!(!ran.stdout.contains(" lost"), "no summary: {ran:?}");
    assert_eq!(ran.stderr, "");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_finding_in_json_is_whole() {
    let hung = Host::hung(Kind::Rapace);
    let ran = watch(&hung, &["--format", "json"]);
    let lines: Vec<Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let header = &lines[0];
    assert_eq!(header["type"], "header");
    assert_eq!(header["roots"], serde_json::json!([hung.pid()]));
    for limit in header["limits"].as_array().unwrap() {
        assert!(limit.as_str().unwrap().contains("; remedy: "), "{limit}");
    }
    let finding = lines.iter().find(|line| line["state"] == "missed").unwrap();
    assert_eq!(finding["code"], "missed-wakeup");
    assert_eq!(finding["lane"], "host->peer");
    assert_eq!(finding["peer"]["id"], 1);
    assert_eq!(finding["peer"]["pid"], hung.plugins[&1]);
    assert_eq!(finding["host"]["pid"], hung.pid());
    assert_eq!(finding["ring"]["len"], 1);
    assert_eq!(finding["doorbell_pending"], 0);
    assert!(!finding["threads"].as_array().unwrap().is_empty());
    for text in ["hub", "rule", "explanation", "time"] {
        assert!(!finding[text].as_str().unwrap().is_empty(), "{text}");
    }
    let summary = lines.last().unwrap();
    assert_eq!(summary["type"], "summary");
    assert_eq!(summary["findings"]["missed-wakeup"], 1);
    assert_eq!(summary["peers"].as_array().unwrap().len(), 2);
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn told_to_stop_a_watch_ends_in_order() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let healthy = Host::healthy(Kind::Sim);
        let args = ["--format", "json", "--pid-tree", &healthy.arg()];
        let mut watch = Target::start(&mut shmtrace(&args));
        assert!(watch.line().contains("\"type\":\"header\""));
        kill_process(Pid::from_raw(watch.pid().cast_signed()).unwrap(), signal).unwrap();
        assert!(watch.line().contains("\"type\":\"summary\""), "{signal:?}");
        assert_eq!(watch.code(), Some(0), "{signal:?}");
    }
}

/// `shmtrace ... | head -1` is no error, whichever command it is.
#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_reader_that_has_seen_enough_is_no_error() {
    let host = Host::healthy(Kind::Sim);
    let tree = host.arg();
    let commands: &[&[&str]] = &[
        &["--events", "--pid-tree", &tree],
        &["--events", "--format", "json", "--pid-tree", &tree],
        &["dump", "--pid-tree", &tree],
        &["inspect", "--pid-tree", &tree],
        &["inspect", "--json", "--pid-tree", &tree],
        &["inspect", "--watch=10ms", "--pid-tree", &tree],
        &["kill", "--dry-run", "--pid-tree", &tree],
        &["profile", "--duration", "200ms", "--pid-tree", &tree],
        &["doctor"],
        &["doctor", "--json"],
        &["explain"],
        &["explain", "missed-wakeup"],
        &["schema"],
        &["man"],
        &["completions", "bash"],
    ];
    for args in commands {
        let mut child = shmtrace(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Closed before anything was read.
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {said}");
        assert!(
            !said.contains("ipe") && !said.contains("panicked"),
            "{args:?}: {said}"
        );
    }
}
