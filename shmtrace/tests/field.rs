//! Hosts and plugins that share no code with this project: `field/stranger.py`, written from the hub's format alone, run and
//! broken in many ways. What else was tried stands in `docs/field-trials.md`.

mod support;
#[path = "field/ways.rs"]
mod ways;

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::watch::{Watch, alone, findings};

const SECONDS: Duration = Duration::from_secs(20);

/// A host with its plugins; ended when dropped.
struct Stranger {
    host: Child,
    lines: BufReader<ChildStdout>,
    plugins: BTreeMap<u64, u64>,
}

impl Stranger {
    /// Starts it, ready for its first call: that comes with [`go`](Self::go).
    fn start(arguments: &str, folder: &Path) -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/field/stranger.py");
        let hub = folder.join("hub");
        let mut host = Command::new("python3")
            .arg(program)
            .args(["host", "--go", "--calls", "0", "--hub"])
            .arg(hub)
            .args(arguments.split_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(host.stdout.take().unwrap());
        let mut stranger = Self {
            host,
            lines,
            plugins: BTreeMap::new(),
        };
        stranger.wait_for("ready");
        stranger
    }

    fn pid(&self) -> u32 {
        self.host.id()
    }

    fn go(&mut self) {
        let stdin = self.host.stdin.as_mut().unwrap();
        stdin.write_all(b"go\n").unwrap();
    }

    /// Reads what it says up to an event of this name.
    fn wait_for(&mut self, name: &str) -> Value {
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line).unwrap();
            assert!(read > 0, "it ended before it said {name}");
            let event: Value = serde_json::from_str(&line).unwrap();
            if event["event"] == "plugin" {
                let number = |field: &str| event[field].as_u64().unwrap();
                self.plugins.insert(number("peer"), number("pid"));
            }
            if event["event"] == name {
                return event;
            }
        }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        // Its plugins die with it, and its hub lies in a folder that goes.
        let _gone = self.host.kill();
        let _status = self.host.wait();
    }
}

/// A fault in some surroundings, and what must be said of it first.
struct Case {
    arguments: &'static str,
    watch: &'static [&'static str],
    code: &'static str,
    /// None of these is wrong; "" stands for no cause.
    causes: &'static [&'static str],
    state: &'static str,
    lane: Option<&'static str>,
}

const fn case(
    arguments: &'static str,
    code: &'static str,
    causes: &'static [&'static str],
) -> Case {
    Case {
        arguments,
        watch: &[],
        code,
        causes,
        state: "missed",
        lane: Some("host->peer"),
    }
}

fn check(case: &Case) {
    eprintln!("{}", case.arguments);
    let folder = tempfile::tempdir().unwrap();
    let mut stranger = Stranger::start(case.arguments, folder.path());
    let options = [&["--fail-on", "any"], case.watch].concat();
    let mut watch = Watch::start(stranger.pid(), &options);
    stranger.go();
    let fault = stranger.wait_for("fault");
    let finding = watch.finding(SECONDS, case.state);
    let said = format!("{}: {finding:#}", case.arguments);
    assert_eq!(finding["code"], case.code, "{said}");
    let cause = finding["cause"].as_str().unwrap_or_default();
    assert!(case.causes.contains(&cause), "{said}");
    if let Some(lane) = case.lane {
        assert_eq!(finding["lane"], lane, "{said}");
    }
    assert_eq!(finding["peer"]["id"], fault["peer"], "{said}");
    let plugin = stranger.plugins[&fault["peer"].as_u64().unwrap()];
    assert_eq!(finding["peer"]["pid"], plugin, "{said}");
    assert_eq!(finding["host"]["pid"], stranger.pid(), "{said}");
    let (status, lines) = watch.stop();
    assert_eq!(status.code(), Some(3), "{said}");
    let same = findings(&lines)
        .iter()
        .filter(|other| other["state"] == case.state)
        .count();
    assert_eq!(same, 1, "{}: {lines:#?}", case.arguments);
}

fn all(cases: &[Case]) {
    let _alone = alone();
    cases.iter().for_each(check);
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn faults_of_plugins_that_say_who_they_are() {
    all(&[
        case("--fault never-rung", "missed-wakeup", &["never-rung"]),
        case(
            "--map parts --host-map parts --fault consumed-then-slept",
            "missed-wakeup",
            &["consumed-then-slept"],
        ),
        case(
            "--map rings --unlink --fault wrong-doorbell",
            "missed-wakeup",
            &["wrong-doorbell"],
        ),
        case(
            "--hub memfd --fault ring-failed",
            "missed-wakeup",
            &["ring-failed"],
        ),
        case("--fault refused", "missed-wakeup", &["ring-failed"]),
        case("--leak --fault stolen", "missed-wakeup", &["stolen"]),
        case(
            "--socket seqpacket --send write --receive read --fault rung-before-publish",
            "missed-wakeup",
            &["rung-before-publish"],
        ),
        case(
            "--host-runtime split --plugin-runtime threads --futex --fault consumed-then-slept",
            "missed-wakeup",
            &["consumed-then-slept"],
        ),
        case(
            "--max-peers 4 --first-id 1 --capacity 16 --fault ring-full",
            "ring-full",
            &[""],
        ),
        Case {
            lane: Some("peer->host"),
            ..case(
                "--plugin-runtime asyncio --fault answer-rung-first",
                "missed-wakeup",
                &["rung-before-publish"],
            )
        },
        Case {
            state: "masked",
            ..case("--fault masked", "missed-wakeup", &["never-rung"])
        },
        case("--fault head-back", "ring-corrupt", &[""]),
        Case {
            lane: None,
            ..case("--fault peer-died", "peer-died", &[""])
        },
        Case {
            lane: None,
            watch: &["--expect-progress", "1s"],
            ..case("--channels --fault unanswered", "unanswered", &[""])
        },
    ]);
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn faults_of_plugins_that_do_not_say_who_they_are() {
    // Their doorbells' history begins when their traffic has shown who they are: then a cause may be unknown.
    all(&[
        case(
            "--start fork --after 1200 --fault consumed-then-slept",
            "missed-wakeup",
            &["consumed-then-slept", "unknown"],
        ),
        case(
            "--start fork --leak --bell silent --plugin-wait recv --blocking --host-wait poll --after 1200 --fault never-rung",
            "missed-wakeup",
            &["never-rung", "unknown"],
        ),
        case(
            "--start fork --bell scm --late 0.5 --after 1200 --fault rung-before-publish",
            "missed-wakeup",
            &["rung-before-publish", "unknown"],
        ),
        case(
            "--start grandchild --leak --bell silent --plugin-wait select --after 1200 --fault consumed-then-slept",
            "missed-wakeup",
            &["consumed-then-slept", "unknown"],
        ),
        case(
            "--start fork --after 1200 --fault blocked-wait4",
            "consumer-blocked",
            &[""],
        ),
        case(
            "--start fork --plugin-wait poll --after 1200 --fault not-draining",
            "not-draining",
            &[""],
        ),
    ]);
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn whoever_comes_late_to_plugins_without_a_name_makes_no_wrong_claim() {
    let _alone = alone();
    for (arguments, code) in [
        ("--start fork --fault never-rung", "missed-wakeup"),
        ("--start fork --fault blocked-wait4", "consumer-blocked"),
        ("--start fork --fault not-draining", "not-draining"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut stranger = Stranger::start(arguments, folder.path());
        stranger.go();
        let fault = stranger.wait_for("fault");
        let mut watch = Watch::start(stranger.pid(), &[]);
        let finding = watch.wait_for(SECONDS, |line| line["type"] == "finding");
        assert_eq!(finding["peer"]["id"], fault["peer"], "{finding:#}");
        match finding["state"].as_str() {
            Some("missed") => assert_eq!(finding["code"], code, "{arguments}: {finding:#}"),
            state => assert_eq!(state, Some("inconclusive"), "{arguments}: {finding:#}"),
        }
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn healthy_strangers_give_no_finding() {
    let _alone = alone();
    for arguments in [
        "",
        "--start fork --leak --bell silent --plugin-wait recv --blocking",
        "--start fork --hub memfd --host-runtime asyncio --plugin-runtime asyncio --gap 0",
        "--bell scm --late 0.5 --map parts --host-runtime threads --host-wait select --futex",
        "--start grandchild --map rings --capacity 4 --host-runtime split --plugin-runtime threads",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let arguments = format!("{arguments} --calls 600");
        let mut stranger = Stranger::start(&arguments, folder.path());
        let mut watch = Watch::start(stranger.pid(), &["--fail-on", "any"]);
        stranger.go();
        // Stopped and continued all the while, one after the other.
        let pids = stranger.plugins.values().copied();
        let pids: Vec<_> = pids.chain([u64::from(stranger.pid())]).collect();
        for pid in pids.repeat(3) {
            let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            // It may have ended.
            let stopped = kill_process(pid, Signal::STOP).is_ok();
            std::thread::sleep(Duration::from_millis(if stopped { 70 } else { 0 }));
            let _gone = kill_process(pid, Signal::CONT);
        }
        stranger.wait_for("done");
        let (status, lines) = watch.end();
        assert_eq!(
            findings(&lines),
            Vec::<&Value>::new(),
            "{arguments}: {lines:#?}"
        );
        assert_eq!(status.code(), Some(0), "{arguments}: {lines:#?}");
        let plugins = lines.last().unwrap()["peers"].as_array().unwrap();
        for plugin in plugins {
            let known = stranger.plugins[&plugin["id"].as_u64().unwrap()];
            assert!(
                plugin["pid"].is_null() || plugin["pid"] == known,
                "{arguments}: {plugin}"
            );
        }
    }
}
