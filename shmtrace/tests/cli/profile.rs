//! `shmtrace profile`: who burns the CPU, who waits, and in which function.

use std::fs;

use crate::support::{Target, run};

/// Two processes: one that computes, and one that sleeps a little again and again.
fn busy_and_idle() -> Target {
    let mut target = Target::script(
        "bash -c 'while :; do :; done' & bash -c 'while :; do sleep 0.02; done' & echo up; wait",
    );
    target.line();
    target
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn samples_are_where_the_cpu_is_burnt() {
    let target = busy_and_idle();
    let ran = run(&["profile", "--duration", "1s", "--pid-tree", &target.arg()]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let samples = |line: &str| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
    let total: u64 = ran.stdout.lines().map(samples).sum();
    let of_bash = |line: &&str| line.starts_with("bash;bash;");
    let busy: u64 = ran.stdout.lines().filter(of_bash).map(samples).sum();
    assert!(total > 20, "{ran:?}");
    assert!(busy > total / 2, "{ran:?}");
    assert!(ran.stderr.contains(&format!("{total} samples")), "{ran:?}");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_flame_graph_is_drawn() {
    let target = busy_and_idle();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("graph.svg");
    let svg = path.to_str().unwrap();
    let ran = run(&[
        "profile",
        "--duration",
        "500ms",
        "-o",
        svg,
        "--pid-tree",
        &target.arg(),
    ]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{ran:?}");
    let drawn = fs::read_to_string(&path).unwrap();
    assert!(drawn.contains("<svg") && drawn.contains("bash"), "{drawn}");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn waits_are_shown_with_their_time_hung_threads_too() {
    let mut target =
        Target::script("bash -c 'while :; do sleep 0.02; done' & sleep 1000 & echo up; wait");
    target.line();
    // Asleep for good before the sampling begins.
    std::thread::sleep(std::time::Duration::from_millis(200));
    let ran = run(&[
        "profile",
        "--off-cpu",
        "--duration",
        "1s",
        "--pid-tree",
        &target.arg(),
    ]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let hung: Vec<&str> = ran
        .stdout
        .lines()
        .filter(|line| line.contains("[asleep all the time]"))
        .collect();
    assert!(
        hung.iter().any(|line| line.starts_with("sleep;sleep;")),
        "{ran:?}"
    );
    let us = |line: &str| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
    assert!(hung.iter().all(|line| us(line) >= 1_000_000), "{hung:?}");
    let waits: u64 = ran
        .stdout
        .lines()
        .filter(|line| line.starts_with("bash;bash;") && !line.contains("[asleep all the time]"))
        .map(us)
        .sum();
    assert!(
        waits > 300_000,
        "the loop waits for its children nearly all the time: {ran:?}"
    );
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn nothing_to_see_is_said() {
    let mut target = Target::script("echo up; exec sleep 1000");
    target.line();
    std::thread::sleep(std::time::Duration::from_millis(200));
    let ran = run(&[
        "profile",
        "--duration",
        "200ms",
        "--pid-tree",
        &target.arg(),
    ]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains("try --off-cpu"), "{ran:?}");
    let nowhere = run(&[
        "profile",
        "-o",
        "/no/such/folder/x.svg",
        "--pid-tree",
        &target.arg(),
    ]);
    assert_eq!(nowhere.code, Some(2));
}
