//! What the traced side names (programs, files) reaches neither a terminal nor a JSON reader as a command.

use std::{fs, process::Command};

use serde_json::Value;

use crate::support::{Host, Kind, Ran, run};

/// Sets a terminal's title, and clears its screen.
const TITLE: &str = "x\u{1b}]0;t\u{7}";
const CLEAR: &str = "y\u{1b}[2J\r\n\u{9b}31m";

/// A host whose program and hub have such names, and which hangs.
fn evil(folder: &tempfile::TempDir) -> Host {
    // The name of a thread is cut to 15 bytes.
    let program = folder.path().join(TITLE);
    fs::copy(Kind::Sim.program(), &program).unwrap();
    let hub = folder.path().join(format!("{CLEAR}.shm"));
    let fault = ["--fault", "consumed-then-slept:peer=1,after=50", "--hub"];
    let mut command = Command::new(&program);
    let args = [&fault[..], &[hub.to_str().unwrap()]].concat();
    Host::start(&mut command, &args, "\"fault\"")
}

fn assert_harmless(what: &str, ran: &Ran) {
    for text in [&ran.stdout, &ran.stderr] {
        let bad = text
            .chars()
            .find(|character| character.is_control() && *character != '\n');
        assert_eq!(bad, None, "{what}: {text:?}");
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn names_are_escaped_in_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let host = evil(&folder);
    let tree = host.arg();
    let hub = folder.path().join(format!("{CLEAR}.shm"));
    let commands: &[&[&str]] = &[
        &["--duration", "500ms", "--pid-tree", &tree],
        &[
            "--duration",
            "500ms",
            "--events",
            "--verbose",
            "--pid-tree",
            &tree,
        ],
        &["dump", "--pid-tree", &tree],
        &["inspect", "--pid-tree", &tree],
        &["inspect", hub.to_str().unwrap()],
        &[
            "profile",
            "--off-cpu",
            "--duration",
            "200ms",
            "--pid-tree",
            &tree,
        ],
        &["kill", "--dry-run", "--pid-tree", &tree],
        &[
            "kill",
            "--stale",
            "--hub-dir",
            folder.path().to_str().unwrap(),
        ],
        &["inspect", "/nowhere\u{1b}[2J.shm"],
        &["replay", "/nowhere\u{1b}[2J.rec"],
        &["explain", "\u{1b}[2J"],
        &["nudge", "--pid-tree", &tree],
        &["kill", "--pid-tree", &tree],
    ];
    let mut seen = String::new();
    for args in commands {
        let ran = run(args);
        assert_harmless(&format!("{args:?}"), &ran);
        seen.push_str(&ran.stdout);
    }
    assert!(
        seen.contains("y\\u{1b}[2J"),
        "the hub's name was shown: {seen}"
    );
    assert!(
        seen.contains("x\\u{1b}]0;t"),
        "the program's name was shown: {seen}"
    );
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn names_are_whole_in_json() {
    let folder = tempfile::tempdir().unwrap();
    let host = evil(&folder);
    let tree = host.arg();
    let hub = folder.path().join(format!("{CLEAR}.shm"));
    for args in [
        &[
            "--duration",
            "500ms",
            "--format",
            "json",
            "--pid-tree",
            &tree,
        ][..],
        &["inspect", "--json", "--pid-tree", &tree],
    ] {
        let ran = run(args);
        assert_harmless(&format!("{args:?}"), &ran);
        let lines: Vec<Value> = ran
            .stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let names =
            |line: &Value| [line["hub"].as_str(), line["path"].as_str()].contains(&hub.to_str());
        assert!(
            lines.iter().any(names),
            "{args:?}: the name as it is: {ran:?}"
        );
    }
}
