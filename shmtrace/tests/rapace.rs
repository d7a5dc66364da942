//! The whole program against hosts and plugins on the published rapace crates: real probes, real processes, real rings.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{
    Peers,
    watch::{Watch, alone, findings},
};

const SECOND: Duration = Duration::from_secs(1);

/// Host and four plugins that wait for the watch to begin.
fn peers(version: &str, arguments: &[&str]) -> Peers {
    let mut peers = Peers::start(
        version,
        &[&["--plugins", "4", "--start-delay", "2s"], arguments].concat(),
    );
    peers.wait_for("ready");
    peers
}

fn healthy(version: &str) {
    let _alone = alone();
    let mut peers = peers(version, &["--gap", "0us", "--round-trips", "100000"]);
    let mut watch = Watch::start(peers.pid(), &["--fail-on", "any"]);
    let done = peers.wait_for("done");
    assert_eq!(done["round_trips"], 100_000);
    let (status, lines) = watch.end();
    assert_eq!(status.code(), Some(0), "{lines:#?}");
    assert_eq!(findings(&lines), Vec::<&Value>::new());
    let summary = lines.last().unwrap();
    assert_eq!(summary["type"], "summary");
    assert_eq!(summary["lost"], 0);
    // Two rings and two takes for each round trip at the least, and not one of them unseen.
    assert!(summary["events"].as_u64() > Some(400_000), "{summary}");
    let calls = &summary["calls"];
    let filtered: u64 = calls["filtered"]
        .as_object()
        .unwrap()
        .values()
        .map(|count| count.as_u64().unwrap())
        .sum();
    let recorded = calls["recorded"].as_u64().unwrap();
    assert_eq!(
        calls["seen"].as_u64().unwrap(),
        recorded + calls["lost"].as_u64().unwrap() + filtered
    );
    let mut table: Vec<Value> = summary["peers"].as_array().unwrap().clone();
    table.sort_by_key(|peer| peer["id"].as_u64());
    let plugins: Vec<(u64, u64)> = table
        .iter()
        .map(|peer| (peer["id"].as_u64().unwrap(), peer["pid"].as_u64().unwrap()))
        .collect();
    let expected: Vec<(u64, u64)> = peers
        .plugins()
        .into_iter()
        .map(|(id, pid)| (u64::from(id), u64::from(pid)))
        .collect();
    assert_eq!(plugins, expected);
    for peer in &table {
        assert_eq!(peer["host_pid"], peers.pid());
        assert_eq!(peer["hub"], json!(peers.hub()));
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_hundred_thousand_round_trips_of_rapace_0_4_give_no_finding() {
    healthy("04");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_hundred_thousand_round_trips_of_rapace_0_5_give_no_finding() {
    healthy("05");
}

/// What the finding must say of a byte stolen from peer `peer`.
fn check_stolen(finding: &Value, fault: &Value, peers: &Peers) {
    let peer = fault["peer"].as_u64().unwrap();
    assert_eq!(finding["code"], "missed-wakeup", "{finding:#}");
    assert_eq!(finding["lane"], "host->peer");
    assert_eq!(finding["peer"]["id"], peer);
    assert_eq!(
        finding["peer"]["pid"],
        peers.plugins()[&u16::try_from(peer).unwrap()]
    );
    assert_eq!(finding["host"]["pid"], peers.pid());
    assert_eq!(finding["hub"], json!(peers.hub()));
    assert_eq!(finding["ring"]["len"], 1);
    assert_eq!(finding["doorbell_pending"], 0);
    assert_eq!(finding["threads"][0]["state"], "S");
    assert!(finding["explanation"].as_str().unwrap().contains("sleeps"));
}

fn stolen(version: &str, thief: &str) {
    let _alone = alone();
    let mut peers = peers(
        version,
        &[
            "--gap",
            "0us",
            "--round-trips",
            "0",
            "--steal-after",
            "2000:2",
            "--thief",
            thief,
        ],
    );
    let mut watch = Watch::start(peers.pid(), &["--fail-on", "missed-wakeup"]);
    let fault = peers.wait_for("fault");
    let finding = watch.finding(10 * SECOND, "missed");
    check_stolen(&finding, &fault, &peers);
    assert_eq!(finding["cause"], "stolen", "{finding:#}");
    let latency = finding["mono_ns"]
        .as_u64()
        .unwrap()
        .saturating_sub(fault["mono_ns"].as_u64().unwrap());
    assert!(latency < 1_000_000_000, "{latency} ns after the fault");
    let (status, lines) = watch.stop();
    assert_eq!(status.code(), Some(3));
    assert_eq!(
        findings(&lines)
            .iter()
            .filter(|finding| finding["state"] == "missed")
            .count(),
        1
    );
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_byte_stolen_by_another_process_from_rapace_0_4_is_a_missed_wakeup() {
    stolen("04", "process");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_byte_stolen_by_the_host_from_rapace_0_4_is_a_missed_wakeup() {
    stolen("04", "host");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_byte_stolen_from_rapace_0_5_is_a_missed_wakeup() {
    stolen("05", "process");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_hang_that_is_five_seconds_old_is_found_with_cause_unknown() {
    let _alone = alone();
    let mut peers = peers(
        "04",
        &[
            "--gap",
            "0us",
            "--round-trips",
            "0",
            "--steal-after",
            "500:1",
        ],
    );
    let fault = peers.wait_for("fault");
    std::thread::sleep(5 * SECOND);
    let mut watch = Watch::start(peers.pid(), &[]);
    let began = std::time::Instant::now();
    let finding = watch.finding(5 * SECOND, "missed");
    let latency = began.elapsed();
    check_stolen(&finding, &fault, &peers);
    assert_eq!(finding["cause"], "unknown");
    assert!(latency < SECOND, "{latency:?} after it was attached");
    drop(peers);
    // The processes end, and the finding with them.
    watch.finding(5 * SECOND, "ended");
    assert_eq!(watch.end().0.code(), Some(0), "no --fail-on");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_healed_hang_is_reported_as_recovered() {
    let _alone = alone();
    let mut peers = peers(
        "04",
        &[
            "--gap",
            "0us",
            "--round-trips",
            "0",
            "--steal-after",
            "500:1",
            "--heal-after",
            "1s",
        ],
    );
    let mut watch = Watch::start(peers.pid(), &[]);
    peers.wait_for("fault");
    let missed = watch.finding(10 * SECOND, "missed");
    peers.wait_for("healed");
    let recovered = watch.finding(5 * SECOND, "recovered");
    assert_eq!(recovered["id"], missed["id"]);
    assert_eq!(recovered["cause"], missed["cause"]);
    assert!(
        recovered["stuck_ns"].as_u64() > Some(900_000_000),
        "{recovered:#}"
    );
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_recording_replays_to_the_same_findings() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("watch.shmtrace");
    let mut peers = peers(
        "04",
        &[
            "--gap",
            "0us",
            "--round-trips",
            "0",
            "--steal-after",
            "500:3",
        ],
    );
    let mut watch = Watch::start(peers.pid(), &["--record", file.to_str().unwrap()]);
    peers.wait_for("fault");
    watch.finding(10 * SECOND, "missed");
    let (_, live) = watch.stop();
    let mut replay = Watch::spawn(&["replay", file.to_str().unwrap()]);
    let (status, replayed) = replay.end();
    assert_eq!(status.code(), Some(0));
    assert_eq!(findings(&replayed), findings(&live));
    assert_eq!(replayed[0], live[0]);
    assert_eq!(
        replayed.last().unwrap()["events"],
        live.last().unwrap()["events"]
    );
}
