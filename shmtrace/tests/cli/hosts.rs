//! `run`, `record` and `profile` on whole hosts: one on this workspace's transport, one on rapace 0.4.

use std::{fs, process::Command};

use serde_json::Value;

use crate::support::{Host, Kind, Ran, run};

/// Lines of a watch among those that the host prints itself.
fn lines(ran: &Ran, kind: &str) -> Vec<Value> {
    ran.stdout
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|line: &Value| line["type"] == kind)
        .collect()
}

/// `shmtrace run MORE -- HOST host ARGUMENTS`.
fn run_host(kind: Kind, more: &[&str], arguments: &[&str]) -> Ran {
    let program = kind.program();
    let start = ["run", "--format", "json", "--fail-on", "any"];
    let host = ["--", program.to_str().unwrap(), "host", "--plugins", "2"];
    run(&[&start[..], more, &host, arguments].concat())
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_healthy_host_is_run_to_its_end_and_accused_of_nothing() {
    for kind in Kind::ALL {
        let ran = run_host(kind, &[], &["--round-trips", "500"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let summary = &lines(&ran, "summary")[0];
        assert_eq!(summary["peers"].as_array().unwrap().len(), 2, "{summary}");
        assert!(ran.stdout.contains("\"round_trips\":500"), "{ran:?}");
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_host_that_hangs_is_found_out_with_the_cause() {
    for (kind, fault, cause) in [
        (
            Kind::Sim,
            ["--fault", "consumed-then-slept:peer=1,after=50"],
            "consumed-then-slept",
        ),
        (Kind::Rapace, ["--steal-after", "50:1"], "stolen"),
    ] {
        let endless = ["--round-trips", "0", "--gap", "1ms", "--fault-hold", "2s"];
        let ran = run_host(kind, &[], &[&endless[..], &fault].concat());
        assert_eq!(ran.code, Some(3), "{ran:?}");
        let findings = lines(&ran, "finding");
        let missed = findings
            .iter()
            .find(|line| line["state"] == "missed" && line["code"] == "missed-wakeup");
        let missed = missed.unwrap_or_else(|| panic!("{ran:?}"));
        assert_eq!(missed["peer"]["id"], 1);
        assert_eq!(missed["cause"], cause, "{missed}");
        // Its hub was made before our eyes, and is not taken for a damaged one.
        let others = findings.iter().any(|line| line["code"] != "missed-wakeup");
        assert!(!others, "{findings:#?}");
        assert!(!missed["timeline"].as_array().unwrap().is_empty());
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_recording_is_judged_as_the_watch_was() {
    for kind in Kind::ALL {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hang.rec");
        let file = file.to_str().unwrap();
        let host = Host::hung(kind);
        let watch = ["--format", "json", "--duration", "1s", "--fail-on", "any"];
        let tree = ["--pid-tree", &host.arg()];
        let record = [&["record", "-o", file][..], &watch, &tree].concat();
        let recorded = run(&record);
        assert_eq!(recorded.code, Some(3), "{recorded:?}");
        drop(host);
        let replayed = run(&["replay", "--format", "json", "--fail-on", "any", file]);
        assert_eq!(replayed.code, Some(3), "{replayed:?}");
        assert_eq!(lines(&replayed, "finding"), lines(&recorded, "finding"));
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_recording_that_was_cut_short_proves_nothing_about_its_rest() {
    let mut command = Command::new(Kind::Sim.program());
    let host = Host::start(&mut command, &["--gap", "5ms"], "\"ready\"");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("healthy.rec");
    let file = file.to_str().unwrap();
    let recorded = run(&[
        "record",
        "-o",
        file,
        "--duration",
        "1s",
        "--pid-tree",
        &host.arg(),
    ]);
    assert_eq!(recorded.code, Some(0), "{recorded:?}");
    assert_eq!(run(&["replay", file]).code, Some(0));
    let whole = fs::read(file).unwrap();
    fs::write(file, &whole[..whole.len() - 5]).unwrap();
    let cut = run(&["replay", file]);
    assert_eq!(cut.code, Some(4), "{cut:?}");
    assert!(cut.stderr.contains("was cut short"), "{cut:?}");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_profile_shows_host_and_plugins_on_and_off_the_cpu() {
    for kind in Kind::ALL {
        let host = Host::healthy(kind);
        let folder = tempfile::tempdir().unwrap();
        for (off_cpu, name) in [(None, "busy.svg"), (Some("--off-cpu"), "waits.svg")] {
            let file = folder.path().join(name);
            let mut args = vec!["profile", "--duration", "1s", "-o", file.to_str().unwrap()];
            args.extend(off_cpu);
            let tree = host.arg();
            args.extend(["--pid-tree", &tree]);
            let ran = run(&args);
            assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{ran:?}");
            let drawn = fs::read_to_string(&file).unwrap();
            for process in ["dodeca-mod-css", "dodeca-mod-html", kind.program_name()] {
                assert!(drawn.contains(process), "{name} lacks {process}: {ran:?}");
            }
            assert!(ran.stderr.contains(name), "{ran:?}");
        }
    }
}
