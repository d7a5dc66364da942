//! The canary: found while all is well, said to be lost where it is, and never mistaken for a finding.

use std::{fs, io::Write as _, path::PathBuf, process::Stdio, time::Duration};

use aya::maps::{Array, HashMap, Map, MapData};
use rustix::process::Signal;
use serde_json::Value;
use shmtrace::{hub::HubReader, process::children};
use shmtrace_common::{PID_SLOTS, Process};
use shmtrace_engine::{Direction, PeerId};

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

fn signal(pid: u32, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
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

/// A table of the probes of a watch, by name.
pub(crate) fn table(watch: u32, name: &str) -> MapData {
    find_table(watch, name).unwrap_or_else(|| panic!("no table {name}"))
}

/// The same of a process that may not have come to it yet.
pub(crate) fn find_table(pid: u32, name: &str) -> Option<MapData> {
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).ok()?;
    let ids = infos.filter_map(|info| {
        let text = fs::read_to_string(info.ok()?.path()).ok()?;
        text.lines()
            .find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok())
    });
    let mut tables = ids.filter_map(|id| MapData::from_id(id).ok());
    tables.find(|table| table.info().unwrap().name_as_str() == Some(name))
}

/// As when the probes lose sight of it, whatever the reason.
#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_watch_that_does_not_find_it_is_blind_until_it_does() {
    let host = Host::healthy(Kind::Sim);
    let mut watch = shmtrace(&[
        "--canary",
        "1s",
        "--format",
        "json",
        "--pid-tree",
        &host.arg(),
    ]);
    let mut watch = Target::start(watch.stderr(Stdio::piped()));
    assert_eq!(json(&watch.line())["type"], "header");
    let birds = birds(watch.pid());
    let processes = table(watch.pid(), "PROCESSES");
    let mut processes = HashMap::<_, u32, Process>::try_from(Map::HashMap(processes)).unwrap();
    let mut pids = Array::<_, u32>::try_from(Map::Array(table(watch.pid(), "PIDS"))).unwrap();
    // What the daemon tells the probes when it has found them must have been told: it would not be told again.
    let known = |processes: &HashMap<_, u32, Process>, pid| {
        processes
            .get(pid, 0)
            .is_ok_and(|process| process.hubs[0].hub != 0)
    };
    assert!(eventually(|| birds
        .iter()
        .all(|pid| known(&processes, pid))));
    let mut taken_out = Vec::new();
    for pid in birds {
        taken_out.push((pid, processes.get(&pid, 0).unwrap()));
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

    for (pid, process) in taken_out {
        pids.set(pid % PID_SLOTS, 1, 0).unwrap();
        processes.insert(pid, process, 0).unwrap();
    }
    epoch.set(0, u32::MAX - 1, 0).unwrap();
    let sees = json(&watch.line());
    assert_eq!(
        (&sees["type"], &sees["state"]),
        (&"canary".into(), &"found".into()),
        "{sees}"
    );

    signal(watch.pid(), Signal::INT);
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
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let [bird, _] = birds(child.id());
    // The hub was made before the second of them.
    let hub = hub_of(child.id());
    assert!(
        eventually(|| !hub.exists()),
        "its name goes when it is known"
    );
    signal(bird, Signal::KILL);
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert!(!hub.exists(), "{ran:?}");
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert!(ran.stderr.contains("BLIND"), "{ran:?}");
    assert!(ran.stdout.contains(": BLIND"), "{ran:?}");
}

/// Its plugin is stopped: what is seen then is not what was planted.
#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_canary_that_is_stopped_is_missed_until_it_runs_again() {
    let host = Host::healthy(Kind::Sim);
    let mut watch = shmtrace(&["--canary", "1s", "--format", "json"]);
    let mut watch = Target::start(watch.args(["--pid-tree", &host.arg()]));
    assert_eq!(json(&watch.line())["type"], "header");
    let [_, plugin] = birds(watch.pid());
    for (sent, state) in [(Signal::STOP, "blind"), (Signal::CONT, "found")] {
        signal(plugin, sent);
        let news = json(&watch.line());
        assert_eq!(
            (&news["type"], &news["state"]),
            (&"canary".into(), &state.into()),
            "{news}"
        );
    }
    signal(watch.pid(), Signal::INT);
    let summary = json(&watch.line());
    assert_eq!(summary["canary"]["blind"], true, "{summary}");
    assert_eq!(summary["findings"], serde_json::json!({}), "{summary}");
    assert_eq!(watch.code(), Some(4), "{summary}");
}

/// Orders that come all at once, as to a host that was stopped, leave the plugin as one by one would.
#[test]
fn a_canary_that_was_stopped_is_not_out_of_step() {
    let folder = tempfile::tempdir().unwrap();
    let hub = folder.path().join("hub.shm");
    fs::write(&hub, "left by somebody").unwrap();
    let mut host = shmtrace(&["internal-canary"])
        .arg(&hub)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut orders = host.stdin.take().unwrap();
    orders.write_all(b"b").unwrap();
    assert!(eventually(|| {
        let maps_it = |pid: &u32| {
            let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
            maps.contains(hub.to_str().unwrap())
        };
        children(host.id()).first().is_some_and(maps_it)
    }));
    let reader = HubReader::open_path(&hub).unwrap();
    orders.write_all(b"n").unwrap();
    assert!(eventually(|| !hub.exists()));
    let lane = || {
        let glance = reader.glance();
        glance.ring(PeerId(0), Direction::ToPeer).unwrap().indexes
    };
    let mut published = 0;
    for at_once in ["phphp", "hp", "h", "php", "h", "p", "h"] {
        orders.write_all(at_once.as_bytes()).unwrap();
        published += at_once.len() as u64;
        // The last wakeup is lost, or nothing is.
        let wanted = (published, u64::from(at_once.ends_with('p')));
        let is_so = || (lane().head, lane().head - lane().tail) == wanted;
        assert!(eventually(is_so), "{at_once}: {:?}", lane());
        std::thread::sleep(Duration::from_millis(50));
        assert!(is_so(), "{at_once}: it stays so, unlike {:?}", lane());
    }
    drop(orders);
    assert!(host.wait().unwrap().success());
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
