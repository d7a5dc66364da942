//! The examples as real processes.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// Built by cargo beside the tests.
fn example(name: &str) -> PathBuf {
    let mut path = env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.join("examples").join(name)
}

fn run(name: &str, arguments: &[&str]) -> String {
    let output = Command::new(example(name))
        .args(arguments)
        .output()
        .expect("examples are built with the tests: run `cargo test` without `--test`");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{name}: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

#[test]
fn a_host_and_its_plugin_talk_and_its_end_is_noticed() {
    let said = run("echo", &[]);
    assert!(
        said.contains("1324 total, 1324 free, 0 allocated, 0 in_flight"),
        "{said}"
    );
    assert!(
        said.contains("recv_ring(head=20000 tail=20000 len=0/256)"),
        "{said}"
    );
    assert!(said.contains("after its end: peer 0 has ended"), "{said}");
}

#[test]
fn killed_plugins_leave_no_slot_and_hold_up_nobody() {
    let said = run("kills", &["60"]);
    assert!(said.starts_with("60 kills"), "{said}");
    assert!(
        said.contains("1324 total, 1324 free, 0 allocated, 0 in_flight"),
        "{said}"
    );
}
