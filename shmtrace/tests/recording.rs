//! Recordings of real hangs: beside a watch, by a recorder that is killed, and by the flight recorder.

mod support;

use std::{fs, path::Path, time::Duration};

use serde_json::Value;
use support::{
    Peers,
    watch::{Watch, alone, findings},
};

const SECOND: Duration = Duration::from_secs(1);

/// A host and four plugins that lose a wakeup soon after the watch begins.
fn peers() -> Peers {
    let mut peers = Peers::start(
        "04",
        &[
            "--plugins",
            "4",
            "--start-delay",
            "2s",
            "--gap",
            "100us",
            "--round-trips",
            "0",
            "--steal-after",
            "500:3",
        ],
    );
    peers.wait_for("ready");
    peers
}

fn replay(file: &Path) -> (Option<i32>, Vec<Value>) {
    let mut replay = Watch::spawn(&["replay", file.to_str().unwrap()]);
    let (status, lines) = replay.end();
    (status.code(), lines)
}

/// Every thread of a finding shows where it sleeps, or why that is not known.
fn assert_stacks(finding: &Value) {
    let threads = finding["threads"].as_array().unwrap();
    assert!(!threads.is_empty(), "{finding:#}");
    for thread in threads {
        for stack in ["kernel_stack", "user_stack"] {
            let frames = thread[stack].as_array();
            assert!(
                frames.is_some_and(|frames| !frames.is_empty()),
                "{thread:#}"
            );
        }
    }
    let waits = |thread: &&Value| thread["waits_for"] == "doorbell";
    let waiter = threads.iter().find(waits).unwrap();
    let kernel = waiter["kernel_stack"].to_string();
    assert!(kernel.contains("poll"), "{kernel}");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_killed_recorder_leaves_a_file_that_tells_the_finding() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("watch.shmtrace");
    let mut peers = peers();
    let mut watch = Watch::start(peers.pid(), &["--record", file.to_str().unwrap()]);
    peers.wait_for("fault");
    let missed = watch.finding(10 * SECOND, "missed");
    assert_stacks(&missed);
    watch.kill();
    let (status, lines) = replay(&file);
    assert_eq!(status, Some(0), "{lines:#?}");
    assert!(findings(&lines).contains(&&missed), "{lines:#?}");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn the_flight_recorder_keeps_what_led_to_a_finding() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("findings");
    let mut peers = peers();
    let mut watch = Watch::start(peers.pid(), &["--record-findings", kept.to_str().unwrap()]);
    peers.wait_for("fault");
    let missed = watch.finding(10 * SECOND, "missed");
    watch.stop();
    let files: Vec<_> = fs::read_dir(&kept).unwrap().map(Result::unwrap).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let (status, lines) = replay(&files[0].path());
    assert_eq!(status, Some(0), "{lines:#?}");
    let again = findings(&lines);
    let again = again.first().expect("the finding is told again");
    for same in ["code", "cause", "lane", "peer", "ring"] {
        assert_eq!(again[same], missed[same], "{again:#}");
    }
    assert_stacks(again);
}
