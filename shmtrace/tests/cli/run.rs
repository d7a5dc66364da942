//! `shmtrace run`: the command's own life, and what is around it.

use std::{
    fs,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Ran, Target, eventually, exists, run, shmtrace};

fn traced(words: &[&str]) -> Ran {
    run(&[&["run", "--quiet", "--"], words].concat())
}

fn signal(target: &Target, signal: Signal) {
    kill_process(Pid::from_raw(target.pid().cast_signed()).unwrap(), signal).unwrap();
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn the_commands_output_and_status_are_kept() {
    let ran = traced(&["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (Some(7), "out\n"),
        "{ran:?}"
    );
    assert_eq!(ran.stderr, "err\n");
    assert_eq!(traced(&["true"]).code, Some(0));
    assert_eq!(traced(&["sh", "-c", "kill -9 $$"]).code, Some(128 + 9));
    let missing = traced(&["no-such-program"]);
    assert_eq!(missing.code, Some(127));
    assert!(missing.stderr.contains("no-such-program"), "{missing:?}");
    assert_eq!(traced(&["/etc/passwd"]).code, Some(126));
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_tree_without_a_hub_is_not_judged() {
    let ran = run(&["run", "--", "true"]);
    assert!(ran.stderr.contains("mapped a hub"), "{ran:?}");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn it_is_limited_before_it_runs_and_oom_kills_are_named() {
    let ran = traced(&["sh", "-c", "cat /proc/self/cgroup"]);
    assert!(ran.stdout.contains("shmtrace-run-"), "{ran:?}");
    let ran = run(&[
        "run",
        "--quiet",
        "--memory-max",
        "none",
        "--",
        "cat",
        "/proc/self/cgroup",
    ]);
    assert!(!ran.stdout.contains("shmtrace-run-"), "{ran:?}");

    let greedy = "x=a; while :; do x=$x$x; done";
    let ran = run(&[
        "run",
        "--quiet",
        "--memory-max",
        "64M",
        "--",
        "bash",
        "-c",
        greedy,
    ]);
    assert_eq!(ran.code, Some(137), "{ran:?}");
    assert!(
        ran.stderr
            .contains("memory-limit: the kernel killed a process"),
        "{ran:?}"
    );
    assert!(ran.stderr.contains("64M"), "{ran:?}");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn told_to_stop_it_ends_the_whole_tree() {
    let script = "(setsid sleep 1000 & echo $! ); sleep 1000 & echo $!; wait";
    let mut target = Target::start(&mut shmtrace(&[
        "run", "--quiet", "--", "bash", "-c", script,
    ]));
    let pids: Vec<u32> = (0..2).map(|_| target.line().parse().unwrap()).collect();
    assert!(pids.iter().all(|pid| exists(*pid)));
    signal(&target, Signal::TERM);
    assert!(eventually(|| !target.is_alive()));
    assert!(
        pids.iter().all(|pid| !exists(*pid)),
        "the one with a session of its own, too"
    );
    assert_eq!(target.code(), Some(128 + 15), "the command's own");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn other_signals_are_passed_on() {
    let script = "trap 'echo usr1' USR1; trap 'exit 3' USR2; echo up; while :; do sleep 0.01; done";
    let mut target = Target::start(&mut shmtrace(&[
        "run", "--quiet", "--", "bash", "-c", script,
    ]));
    assert_eq!(target.line(), "up");
    signal(&target, Signal::USR1);
    assert_eq!(target.line(), "usr1");
    signal(&target, Signal::USR2);
    assert_eq!(target.code(), Some(3));
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_command_that_does_not_end_is_killed_after_the_timeout() {
    let args = ["run", "--quiet", "--timeout", "100ms", "--", "bash", "-c"];
    let script = "trap '' TERM; echo up; while :; do sleep 0.01; done";
    let mut target = Target::start(&mut shmtrace(&[&args[..], &[script]].concat()));
    assert_eq!(target.line(), "up");
    signal(&target, Signal::TERM);
    assert_eq!(target.code(), Some(128 + 9));
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn what_the_command_leaves_running_is_named() {
    let ran = traced(&["sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!"]);
    let left: u32 = ran.stdout.trim().parse().unwrap();
    assert!(exists(left), "the command ended by itself");
    assert!(
        ran.stderr.contains(&format!("kill --pid-tree {left}")),
        "{ran:?}"
    );
    let ended = run(&["kill", "--pid-tree", &left.to_string()]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn files_belong_to_the_user_who_called_sudo() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let script = format!(
        "touch {}/made; echo $HOME:$USER:$SUDO_UID:$(id -G)",
        path.display()
    );
    let mut command = shmtrace(&["run", "--quiet", "--user", "--", "sh", "-c", &script]);
    let ran = Ran::from(
        command
            .env("SUDO_UID", "1")
            .env("SUDO_GID", "1")
            .output()
            .unwrap(),
    );
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(ran.stdout, "/usr/sbin:daemon::1\n");
    assert_eq!(fs::metadata(path.join("made")).unwrap().uid(), 1);

    let nobody = Ran::from(
        shmtrace(&["run", "--user", "--", "true"])
            .env_remove("SUDO_UID")
            .output()
            .unwrap(),
    );
    assert_eq!(nobody.code, Some(5));
    assert!(nobody.stderr.contains("--user=NAME"), "{nobody:?}");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn without_rights_nothing_is_started() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(
        folder.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    let mark = folder.path().join("ran");
    let mut command = Command::new(env!("CARGO_BIN_EXE_shmtrace"));
    command
        .args(["run", "--memory-max", "none", "--", "touch"])
        .arg(&mark)
        .uid(65534)
        .gid(65534);
    let Ok(output) = command.stdin(Stdio::null()).output() else {
        return; // the build folder is not open to others: nothing to see here, and `doctor` tests the refusal
    };
    let ran = Ran::from(output);
    assert_eq!(ran.code, Some(5), "{ran:?}");
    assert!(ran.stderr.contains("sudo"), "{ran:?}");
    assert!(!mark.exists());
    let limited = Command::new(env!("CARGO_BIN_EXE_shmtrace"))
        .args(["run", "--", "true"])
        .uid(65534)
        .gid(65534)
        .output();
    let limited = Ran::from(limited.unwrap());
    assert_eq!(limited.code, Some(5), "{limited:?}");
    assert!(limited.stderr.contains("--memory-max none"), "{limited:?}");
}
