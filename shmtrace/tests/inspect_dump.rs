//! `inspect` and `dump` against real processes and files, as a user would call them.

mod support;

use std::{fs, path::PathBuf, process::Command};

use support::Peers;

/// Standard output, standard error and exit code of `shmtrace ARGUMENTS`.
fn shmtrace(arguments: &[&str]) -> (String, String, i32) {
    let output = Command::new(env!("CARGO_BIN_EXE_shmtrace"))
        .args(arguments)
        .env_remove("SHMTRACE_PID_TREE")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (
        text(&output.stdout),
        text(&output.stderr),
        output.status.code().unwrap(),
    )
}

/// Hung peers: the token of peer 1 was stolen.
fn hung() -> Peers {
    let mut peers = Peers::start(
        "04",
        &[
            "--plugins",
            "3",
            "--round-trips",
            "0",
            "--gap",
            "300us",
            "--steal-after",
            "50:1",
            "--payload",
            "8",
        ],
    );
    peers.wait_for("fault");
    peers
}

#[test]
fn dump_prints_what_the_handler_prints_and_what_it_means() {
    let peers = hung();
    let (out, err, code) = shmtrace(&["dump", "--pid-tree", &peers.pid().to_string()]);
    assert_eq!(code, 0, "{err}");
    let block: Vec<&str> = out
        .lines()
        .skip_while(|line| *line != "--- Hub Transport Diagnostics ---")
        .take_while(|line| *line != "--- End Hub Diagnostics ---")
        .collect();
    assert_eq!(
        block[1],
        "HubAllocator slots: 1324 total, 1324 free, 0 allocated, 0 in_flight"
    );
    assert_eq!(
        block[2],
        "  class[0] (   1024B): 1024 total, 1024 free, 0 allocated, 0 in_flight"
    );
    assert!(
        block[7].starts_with("  peer[0] \"dodeca-mod-"),
        "{}",
        block[7]
    );
    assert!(
        block[8].contains("len=1/256) send_ring(head="),
        "{}",
        block[8]
    );
    assert!(
        block
            .iter()
            .skip(7)
            .all(|line| line.ends_with("doorbell_pending=0")),
        "{block:?}"
    );
    assert!(
        out.contains(
            "peer[1] recv_ring: len=1, doorbell_pending=0, plugin asleep -> missed wakeup"
        ),
        "{out}"
    );
    assert!(out.contains("waits for its doorbell"), "{out}");
    for pid in peers.plugins().values() {
        assert!(out.contains(&pid.to_string()));
    }
}

#[test]
fn dump_of_a_healthy_tree_accuses_nobody() {
    let mut peers = Peers::start(
        "05",
        &["--plugins", "2", "--round-trips", "0", "--gap", "1ms"],
    );
    peers.wait_for("ready");
    for _ in 0..5 {
        let (out, err, code) = shmtrace(&["dump", "--pid-tree", &peers.pid().to_string()]);
        assert_eq!(code, 0, "{err}");
        assert!(
            !out.contains("missed wakeup") && !out.contains("does not drain"),
            "{out}"
        );
    }
}

#[test]
fn dump_sends_a_signal_only_to_those_that_handle_it() {
    let peers = hung();
    let (out, _, code) = shmtrace(&["dump", "--signal", "--pid-tree", &peers.pid().to_string()]);
    assert_eq!(code, 0);
    assert!(
        out.contains("no process of the tree has a handler for it"),
        "{out}"
    );
    assert_eq!(peers.tree().len(), 4, "all still there");

    // A shell with a handler answers into a file.
    let folder = tempfile::tempdir().unwrap();
    let answer = folder.path().join("stderr");
    let mut shell = Command::new("sh")
        .args([
            "-c",
            "trap 'echo here I am >&2' USR1; echo ready; while :; do sleep 0.05; done",
        ])
        .stdout(std::process::Stdio::piped())
        .stderr(fs::File::create(&answer).unwrap())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut [0; 5]).unwrap();
    let (out, _, code) = shmtrace(&["dump", "--signal", "--pid-tree", &shell.id().to_string()]);
    shell.kill().unwrap();
    shell.wait().unwrap();
    assert_eq!(code, 1, "there is no hub");
    assert!(out.contains("printed:\n  here I am\n"), "{out}");
}

#[test]
fn inspect_shows_a_living_hub_by_tree_and_by_file() {
    let peers = hung();
    let (by_tree, err, code) = shmtrace(&["inspect", "--pid-tree", &peers.pid().to_string()]);
    assert_eq!(code, 0, "{err}");
    let (by_file, err, code) = shmtrace(&["inspect", &peers.hub()]);
    assert_eq!(code, 0, "{err}");
    for out in [&by_tree, &by_file] {
        assert!(out.contains(", host), "), "{out}");
        assert!(out.contains("len=1/256\n      #"), "{out}");
        assert!(out.contains(" B inline ["), "{out}");
        assert!(out.contains("consistency: sound"), "{out}");
        for pid in peers.plugins().values() {
            assert!(out.contains(&format!(" pid {pid}: ACTIVE")), "{out}");
        }
    }
    let (json, _, _) = shmtrace(&["inspect", "--json", &peers.hub()]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        json["peers"][1]["recv_ring"]["waiting"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(json["mapped_by"].as_array().unwrap().len(), 4);
    assert_eq!(json["violations"], serde_json::json!([]));
}

/// A copy of a hub whose processes are gone.
fn dead_hub(folder: &tempfile::TempDir) -> PathBuf {
    let peers = hung();
    let copy = folder.path().join("dead.shm");
    let status = Command::new("cp")
        .arg("--sparse=always")
        .arg(peers.hub())
        .arg(&copy)
        .status();
    assert!(status.unwrap().success());
    copy
}

#[test]
fn inspect_reads_dead_cut_and_foreign_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = dead_hub(&folder);
    let name = path.to_str().unwrap();
    let (out, _, code) = shmtrace(&["inspect", name]);
    assert_eq!(code, 0);
    assert!(out.contains("mapped by: nobody (left behind)"), "{out}");
    assert!(out.contains("peer[1] ?: ACTIVE"), "{out}");

    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(50_000).unwrap();
    let (out, _, code) = shmtrace(&["inspect", name]);
    assert_eq!(code, 1);
    assert!(
        out.contains("! is cut short: its rings end at byte ")
            && out.contains(", the file at byte 50000"),
        "{out}"
    );
    assert!(
        out.contains("    send_ring at "),
        "what is there is shown: {out}"
    );

    std::os::unix::fs::FileExt::write_all_at(&file, &[2], 10).unwrap();
    let (out, err, code) = shmtrace(&["inspect", name]);
    assert_eq!((code, out.as_str()), (5, ""));
    assert!(
        err.contains("header: version 2.0")
            && err.contains("format version 2.0, and this shmtrace reads 1.x"),
        "{err}"
    );

    file.set_len(10).unwrap();
    let (_, err, code) = shmtrace(&["inspect", name]);
    assert_eq!(code, 1);
    assert!(
        err.contains("10 bytes long, shorter than a hub's header"),
        "{err}"
    );

    let (_, err, code) = shmtrace(&["inspect", "/etc/passwd"]);
    assert_eq!(code, 1);
    assert_eq!(err.matches("is no hub").count(), 1, "{err}");
    let (_, err, code) = shmtrace(&["inspect", "/nowhere.shm"]);
    assert_eq!(code, 1);
    assert!(err.contains("No such file"), "{err}");
}

#[test]
fn wrong_use_is_refused_with_a_hint() {
    let (_, err, code) = shmtrace(&["inspect"]);
    assert_eq!(code, 2);
    assert!(
        err.contains("give either a hub file or --pid-tree"),
        "{err}"
    );
    for command in ["inspect", "dump"] {
        let (_, err, code) = shmtrace(&[command, "--pid-tree", "4194304"]);
        assert_eq!(code, 1);
        assert!(err.contains("no such process: 4194304"), "{err}");
        let mut other = Command::new("sleep").arg("60").spawn().unwrap();
        let (_, err, code) = shmtrace(&[command, "--pid-tree", &other.id().to_string()]);
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(code, 1);
        assert!(err.contains("no process of the tree maps a hub"), "{err}");
    }
}
