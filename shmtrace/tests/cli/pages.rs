//! `explain`, `completions`, `man`, `schema`, `doctor`, and help: what is read rather than run.

use std::process::Command;

use serde_json::Value;

use crate::support::{Host, Kind, Ran, program_for_all, run, run_as_nobody, shmtrace};

#[test]
fn explain_lists_and_shows_pages() {
    let all = run(&["explain"]);
    assert_eq!(all.code, Some(0));
    assert!(all.stdout.lines().count() == 18, "{}", all.stdout);
    let page = run(&["explain", "stolen"]);
    assert!(
        page.stdout
            .starts_with("stolen (a cause of missed-wakeup)\n\n"),
        "{page:?}"
    );
    let state = run(&["explain", "masked"]);
    assert!(state.stdout.contains("`masked` means"), "{state:?}");
    let unknown = run(&["explain", "gremlins"]);
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.stderr.contains("missed-wakeup"), "{unknown:?}");
}

#[test]
fn completions_for_every_shell() {
    for shell in shmtrace::commands::shell::shells() {
        let script = run(&["completions", &shell]);
        assert_eq!(script.code, Some(0));
        assert!(script.stdout.contains("pid-tree"), "{shell}");
    }
}

#[test]
fn every_command_has_help_and_a_page() {
    let help = run(&["--help"]);
    assert_eq!(help.code, Some(0));
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(
        run(&["man", "--output-dir", folder.path().to_str().unwrap()]).code,
        Some(0)
    );
    let commands = help
        .stdout
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty() && *name != "help");
    let mut count = 0;
    for name in commands {
        count += 1;
        let help = run(&[name, "--help"]);
        assert_eq!(help.code, Some(0), "{name}");
        assert!(help.stdout.contains("Usage: "), "{name}");
        for line in help.stdout.lines() {
            assert!(line.chars().count() <= 100, "{name}: {line}");
        }
        assert!(
            folder.path().join(format!("shmtrace-{name}.1")).exists(),
            "{name}"
        );
        let page = run(&["man", name]);
        assert!(page.stdout.contains(".TH"), "{name}");
    }
    assert!(count >= 10, "{count}");
}

#[test]
fn the_schema_is_one_and_takes_no_nonsense() {
    let schema: Value = serde_json::from_str(&run(&["schema"]).stdout).unwrap();
    let schema = jsonschema::validator_for(&schema).unwrap();
    for wrong in [
        r#"{"type":"header"}"#,
        r#"{"type":"other"}"#,
        r#"{"schema":1}"#,
        r#"{"type":"summary","duration_ns":-1,"events":0,"lost":0,"findings":{},"peers":[]}"#,
        r#"{"type":"summary","duration_ns":1,"events":0,"lost":0,"findings":{"gremlins":1},"peers":[]}"#,
    ] {
        assert!(
            !schema.is_valid(&serde_json::from_str(wrong).unwrap()),
            "{wrong}"
        );
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn every_line_of_a_watch_is_in_the_schema() {
    let schema: Value = serde_json::from_str(&run(&["schema"]).stdout).unwrap();
    let schema = jsonschema::validator_for(&schema).unwrap();
    let late = ["--start-delay", "1s", "--steal-after", "50"];
    let mut command = Command::new(Kind::Rapace.program());
    let host = Host::start(&mut command, &late, "\"ready\"");
    let ran = Ran::from(
        shmtrace(&[
            "--format",
            "json",
            "--events",
            "--verbose",
            "--duration",
            "4s",
            "--pid-tree",
            &host.arg(),
        ])
        .output()
        .unwrap(),
    );
    let lines: Vec<Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for line in &lines {
        let wrong: Vec<String> = schema
            .iter_errors(line)
            .map(|error| error.to_string())
            .collect();
        assert!(wrong.is_empty(), "{line}\n{wrong:?}");
    }
    let count = |kind: &str| lines.iter().filter(|line| line["type"] == kind).count();
    assert_eq!((count("header"), count("summary")), (1, 1));
    assert!(count("event") > 10, "{}", count("event"));
    assert!(
        count("finding") > 0,
        "the stolen token was not found: {:?}",
        lines.last()
    );
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn doctor_says_yes_as_root() {
    let ran = run(&["doctor"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.ends_with("shmtrace can trace here\n"), "{ran:?}");
    let json: Value = serde_json::from_str(&run(&["doctor", "--json"]).stdout).unwrap();
    assert_eq!(json["can_trace"], true);
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn doctor_says_no_with_remedies_to_others() {
    let (_folder, program) = program_for_all();
    let ran = run_as_nobody(&program, &["doctor", "--json"]);
    assert_eq!(ran.code, Some(5), "{ran:?}");
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["can_trace"], false);
    let checks = json["checks"].as_array().unwrap();
    assert!(checks.iter().any(|check| check["answer"] == "no"));
    for check in checks {
        assert_eq!(
            check["answer"] == "yes",
            check["remedy"].is_null(),
            "{check}"
        );
    }
}
