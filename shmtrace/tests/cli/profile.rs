//! `shmtrace profile`: who burns the CPU, who waits, and in which function.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use aya::{
    Pod,
    maps::{HashMap, Map},
};
use shmtrace_common::profile::{
    MAX_PLACES, MAX_SAMPLED_PROCESSES, MAX_WAITING, NO_STACK, Place, Waiting,
};

use crate::{
    canary::find_table,
    support::{Ran, Target, eventually, run, shmtrace, without_call},
};

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

/// The two of [`busy_and_idle`], and two more when it is told to.
const GROWING: &str = "bash -c 'while :; do :; done' & bash -c 'while :; do sleep 0.02; done' & \
    echo up; read -r; sleep 1000 & sleep 1000 & wait";

/// The tables are filled by the test, as by more processes, places and threads than most machines have.
#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn what_full_tables_do_not_take_is_said() {
    fn fill<K: Pod, V: Pod>(profile: u32, table: &str, mut entries: impl Iterator<Item = (K, V)>) {
        let table = find_table(profile, table).unwrap();
        let mut table = HashMap::<_, K, V>::try_from(Map::HashMap(table)).unwrap();
        assert!(entries.any(|(key, value)| table.insert(key, value, 0).is_err()));
    }
    // Numbers that no process has.
    let pids = |most| (1 << 30)..=(1 << 30) + most;
    let place = |pid| Place {
        pid,
        user: NO_STACK,
        kernel: NO_STACK,
        pad: 0,
        comm: [0; 16],
    };
    for (regime, said) in [
        (["--frequency", "999"], ["samples", "processes"]),
        (["--off-cpu", "--quiet"], ["waits", "processes"]),
    ] {
        let mut script = Command::new("bash");
        let (mut target, mut input) = Target::start_with_input(script.args(["-c", GROWING]));
        target.line();
        let tree = target.arg();
        let mut profile = shmtrace(&["profile", "--duration", "3s", "--pid-tree", &tree]);
        let profile = profile
            .args(regime)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let profile = profile.spawn().unwrap();
        let entered = || {
            let table = find_table(profile.id(), "TREE");
            let tree =
                table.and_then(|tree| HashMap::<_, u32, u32>::try_from(Map::HashMap(tree)).ok());
            tree.is_some_and(|tree| tree.keys().count() >= 3)
        };
        assert!(eventually(entered));
        fill(
            profile.id(),
            "TREE",
            pids(MAX_SAMPLED_PROCESSES).map(|pid| (pid, 1_u32)),
        );
        if regime[0] == "--off-cpu" {
            let waiting = |pid| Waiting {
                since: 0,
                place: place(pid),
            };
            fill(
                profile.id(),
                "WAITING",
                pids(MAX_WAITING).map(|pid| (pid, waiting(pid))),
            );
        } else {
            fill(
                profile.id(),
                "PLACES",
                pids(MAX_PLACES).map(|pid| (place(pid), 0_u64)),
            );
        }
        input.write_all(b"grow\n").unwrap();
        let ran = Ran::from(profile.wait_with_output().unwrap());
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        for what in said {
            let full = format!(" {what} not kept");
            assert!(ran.stderr.contains(&full), "{what}: {}", ran.stderr);
        }
    }
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

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn refused_perf_events_leave_the_waits_and_are_named_with_their_remedy() {
    let target = busy_and_idle();
    let profile = |more: &[&str]| {
        let args = ["profile", "--duration", "300ms", "--pid-tree"];
        let mut command = shmtrace(&[&args[..], &[&target.arg()], more].concat());
        without_call(&mut command, libc::SYS_perf_event_open);
        Ran::from(command.output().unwrap())
    };
    let refused = profile(&[]);
    assert_eq!(refused.code, Some(5), "{refused:?}");
    for part in [
        "perf_event_open",
        "sudo",
        "perf_event_paranoid",
        "--off-cpu",
    ] {
        assert!(refused.stderr.contains(part), "{part}: {refused:?}");
    }
    assert_eq!(refused.stdout, "");
    let waits = profile(&["--off-cpu"]);
    assert_eq!(waits.code, Some(0), "{waits:?}");
    assert!(waits.stdout.contains("bash;bash;"), "{waits:?}");
}

/// A program that computes in `inner`, called by `outer`; with or without frame pointers.
fn computing(folder: &std::path::Path, pointers: &str) -> Target {
    const SOURCE: &str = "
        use std::hint::black_box;
        #[inline(never)] fn inner(mut x: u64) -> u64 { for i in 0..1_000_000 { x = black_box(x ^ i); } x }
        #[inline(never)] fn outer(x: u64) -> u64 { black_box(inner(x)) + 1 }
        fn main() { println!(\"up\"); let mut x = 1; loop { x = black_box(outer(x)); } }
    ";
    let source = folder.join("computing.rs");
    fs::write(&source, SOURCE).unwrap();
    let program = folder.join("computing");
    let built = Command::new("rustc")
        .args([
            "-O",
            "-g",
            "-C",
            &format!("force-frame-pointers={pointers}"),
        ])
        .args(["-o", program.to_str().unwrap(), source.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(built.status.success(), "{built:?}");
    let mut target = Target::start(&mut Command::new(program));
    assert_eq!(target.line(), "up");
    target
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn the_remedy_for_missing_stacks_helps() {
    let folder = tempfile::tempdir().unwrap();
    for pointers in ["no", "yes"] {
        let target = computing(folder.path(), pointers);
        let ran = run(&[
            "profile",
            "--duration",
            "500ms",
            "--pid-tree",
            &target.arg(),
        ]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        // Without them, callers are skipped or not found at all.
        let whole = ran.stdout.contains("computing::outer;computing::inner");
        assert_eq!(whole, pointers == "yes", "{ran:?}");
        if whole {
            assert!(!ran.stderr.contains("no usable stack"), "{ran:?}");
        }
    }
}
