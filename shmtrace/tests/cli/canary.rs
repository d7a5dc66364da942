//! The canary: found while all is well, said to be lost where it is, and never mistaken for a finding.

use std::{fs, path::PathBuf};

use aya::maps::{Array, HashMap, Map, MapData};
use serde_json::Value;
use shmtrace::process::children;
use shmtrace_common::{PID_SLOTS, Process};

use crate::support::{Host, Kind, Ran, Target, eventually, run, shmtrace};

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// The canary's host and plugin, once both are there.
fn birds(watch: u32) -> [u32; 2] {
    let mut found = None;
    assert!(eventually(|| {
        let mut hosts = children(watch).into_iter().filter(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name == "shmtrace-canary\n"
        });
        found = hosts.find_map(|host| Some([host, *children(host).first()?]));
        found.is_some()
    }));
    found.unwrap()
}

fn hub_of(watch: u32) -> PathBuf {
    std::env::temp_dir().join(format!("shmtrace-canary-{watch}.shm"))
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_canary_is_found_and_is_no_finding() {
    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("recording").display().to_string();
    let host = Host::healthy(Kind::Sim);
    let mut watch = shmtrace(&["--canary", "1s", "--duration", "8s", "--format", "json"]);
    watch.args(["--fail-on", "any", "--record", &record, "--events"]);
    let mut watch = Target::start(watch.args(["--pid-tree", &host.arg()]));
    assert_eq!(json(&watch.line())["type"], "header");
    let birds = birds(watch.pid());
    assert!(eventually(|| hub_of(watch.pid()).exists()));
    let summary = loop {
        let line = json(&watch.line());
        match line["type"].as_str().unwrap() {
            "event" => assert!(!birds.iter().any(|pid| line["pid"] == *pid), "{line}"),
            "summary" => break line,
            _ => panic!("{line}"),
        }
    };
    assert_eq!(watch.code(), Some(0), "{summary}");
    assert_eq!(summary["canary"]["blind"], false, "{summary}");
    let (planted, found) = (&summary["canary"]["planted"], &summary["canary"]["found"]);
    assert!(found.as_u64() >= Some(2), "{summary}");
    assert!(
        planted.as_u64() <= found.as_u64().map(|found| found + 1),
        "{summary}"
    );
    assert_eq!(summary["findings"], serde_json::json!({}), "{summary}");
    assert_eq!(summary["peers"].as_array().unwrap().len(), 2, "{summary}");
    assert!(eventually(|| birds
        .iter()
        .all(|pid| !crate::support::exists(*pid))));
    assert!(!hub_of(watch.pid()).exists(), "it leaves nothing behind");

    let again = run(&["replay", "--fail-on", "any", &record]);
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(
        !fs::read_to_string(&record)
            .unwrap()
            .contains("shmtrace-canary")
    );
}

/// The tables of the probes of a watch, by name.
fn table(watch: u32, name: &str) -> MapData {
    let infos = fs::read_dir(format!("/proc/{watch}/fdinfo")).unwrap();
    let ids = infos.filter_map(|info| {
        let text = fs::read_to_string(info.ok()?.path()).ok()?;
        text.lines()
            .find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok())
    });
    let tables = ids.map(|id| MapData::from_id(id).unwrap());
    let named = |table: &MapData| table.info().unwrap().name_as_str() == Some(name);
    tables
        .into_iter()
        .find(named)
        .unwrap_or_else(|| panic!("no table {name}"))
}

/// As when the probes lose sight of it, whatever the reason.
#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_watch_that_does_not_find_it_says_that_it_is_blind() {
    let host = Host::healthy(Kind::Sim);
    let mut watch = shmtrace(&[
        "--canary",
        "1s",
        "--format",
        "json",
        "--pid-tree",
        &host.arg(),
    ]);
    let mut watch = Target::start(watch.stderr(std::process::Stdio::piped()));
    assert_eq!(json(&watch.line())["type"], "header");
    let birds = birds(watch.pid());
    let processes = table(watch.pid(), "PROCESSES");
    let mut processes = HashMap::<_, u32, Process>::try_from(Map::HashMap(processes)).unwrap();
    let mut pids = Array::<_, u32>::try_from(Map::Array(table(watch.pid(), "PIDS"))).unwrap();
    // What the daemon tells the probes when it has found them must have been told.
    let known = |processes: &HashMap<_, u32, Process>, pid| {
        processes
            .get(pid, 0)
            .is_ok_and(|process| process.flags != 0)
    };
    assert!(eventually(|| birds
        .iter()
        .all(|pid| known(&processes, pid))));
    for pid in birds {
        processes.remove(&pid).unwrap();
        pids.set(pid % PID_SLOTS, 0, 0).unwrap();
    }
    // What the probes remember of before is void, as with every change that the daemon makes.
    let mut epoch = Array::<_, u32>::try_from(Map::Array(table(watch.pid(), "EPOCH"))).unwrap();
    epoch.set(0, u32::MAX, 0).unwrap();
    let blind = json(&watch.line());
    assert_eq!(
        (&blind["type"], &blind["state"]),
        (&"canary".into(), &"blind".into()),
        "{blind}"
    );
    assert!(
        blind["explanation"].as_str().unwrap().contains("BLIND"),
        "{blind}"
    );

    let pid = rustix::process::Pid::from_raw(watch.pid().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let summary = json(&watch.line());
    assert_eq!(summary["canary"]["blind"], true, "{summary}");
    assert_eq!(summary["findings"], serde_json::json!({}), "{summary}");
    assert_eq!(watch.code(), Some(4), "not all could be seen: {summary}");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_canary_that_dies_is_missed() {
    let host = Host::healthy(Kind::Sim);
    let mut watch = shmtrace(&[
        "--canary",
        "1s",
        "--duration",
        "6s",
        "--pid-tree",
        &host.arg(),
    ]);
    let child = watch
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let [bird, _] = birds(child.id());
    let bird = rustix::process::Pid::from_raw(bird.cast_signed()).unwrap();
    rustix::process::kill_process(bird, rustix::process::Signal::KILL).unwrap();
    let hub = hub_of(child.id());
    let ran = Ran::from(child.wait_with_output().unwrap());
    // It could not take it along.
    let _gone_already = fs::remove_file(hub);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert!(ran.stderr.contains("BLIND"), "{ran:?}");
    assert!(ran.stdout.contains(": BLIND"), "{ran:?}");
}

/// Short watches have none, and who wants none has none.
#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_canary_is_for_long_watches() {
    let host = Host::healthy(Kind::Sim);
    for (more, has) in [
        (["--duration", "30s"], false),
        (["--duration", "2m"], true),
        (["--no-canary", "--quiet"], false),
        (["--canary", "1m"], true),
    ] {
        let mut watch = shmtrace(&["--format", "json", "--pid-tree", &host.arg()]);
        let mut watch = Target::start(watch.args(more));
        watch.line();
        // The other one is the helper.
        assert_eq!(
            children(watch.pid()).len(),
            1 + usize::from(has),
            "{more:?}"
        );
    }
}
