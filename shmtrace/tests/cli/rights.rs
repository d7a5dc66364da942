//! What a watch keeps of its rights, what it can do without them, and to whom its files belong.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::support::{
    Host, Kind, Ran, Target, eventually, program_for_all, run, run_as_nobody, shmtrace, sibling,
};

const PTRACE: u64 = 1 << 19;
const DAC_READ_SEARCH: u64 = 1 << 2;
const CHECKPOINT_RESTORE: u64 = 1 << 40;
/// Kernels before 5.19 want `CAP_BPF` for writing to a table.
const BPF: u64 = 1 << 39;
/// What a watch may keep at most.
const KEPT: u64 = PTRACE | DAC_READ_SEARCH | CHECKPOINT_RESTORE | BPF;
/// What its helper may keep at most: `CAP_SYS_ADMIN` and `CAP_PERFMON`, and to look.
const HELPER: u64 = PTRACE | DAC_READ_SEARCH | 1 << 21 | 1 << 38;

/// The fields of a `status` file that are numbers of this radix.
fn fields(status: &str, radix: u32) -> BTreeMap<String, u64> {
    status
        .lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((
                name.to_owned(),
                u64::from_str_radix(value.trim(), radix).ok()?,
            ))
        })
        .collect()
}

/// The capabilities of each thread of a process; none is left to gain any, and its system calls are filtered.
fn rights_of(pid: u32) -> Vec<u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap())
        .map(|status| {
            let (masks, numbers) = (fields(&status, 16), fields(&status, 10));
            assert_eq!(numbers["NoNewPrivs"], 1, "{status}");
            assert_eq!(numbers["Seccomp"], 2, "{status}");
            assert_eq!(masks["CapBnd"] & !masks["CapPrm"], 0, "{status}");
            assert_eq!((masks["CapInh"], masks["CapAmb"]), (0, 0), "{status}");
            assert_eq!(masks["CapPrm"], masks["CapEff"], "{status}");
            masks["CapEff"]
        })
        .collect()
}

/// A shell that starts a host after a while; the plugin loses a wakeup later still.
fn late_host(folder: &Path) -> Target {
    let host = sibling("ddc-sim").display().to_string();
    let hub = folder.join("hub.shm").display().to_string();
    let arguments = "--plugins 2 --workers 1 --round-trips 0 --gap 300us --fault-hold 1m";
    let mut target = Target::script(&format!(
        "echo up; sleep 1; exec {host} host --hub {hub} {arguments} --fault consumed-then-slept:peer=1,after=300"
    ));
    assert_eq!(target.line(), "up");
    target
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_watch_gives_up_what_it_does_not_need_and_sees_who_comes_later() {
    let folder = tempfile::tempdir().unwrap();
    let late = late_host(folder.path());
    let mut watch = shmtrace(&["--format", "json", "--pid-tree", &late.arg()]);
    let mut watch = Target::start(watch.args(["--duration", "20s"]));
    let header: Value = serde_json::from_str(&watch.line()).unwrap();
    assert_eq!(header["type"], "header");
    for kept in rights_of(watch.pid()) {
        assert_eq!(kept & !KEPT, 0, "{kept:#x}");
    }
    let helpers = shmtrace::process::children(watch.pid());
    assert_eq!(helpers.len(), 1, "{helpers:?}");
    // It starts while the watch does.
    let is_filtered = |pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.contains("Seccomp:\t2")
    };
    assert!(eventually(|| is_filtered(helpers[0])));
    for kept in rights_of(helpers[0]) {
        assert_eq!(kept & !HELPER, 0, "{kept:#x}");
    }
    let finding = loop {
        let line: Value = serde_json::from_str(&watch.line()).unwrap();
        assert_ne!(line["type"], "summary", "not found: {line}");
        if line["type"] == "finding" && line["state"] == "missed" {
            break line;
        }
    };
    assert_eq!(finding["cause"], "consumed-then-slept", "{finding}");
    let threads = finding["threads"].as_array().unwrap();
    let stacks = |kind: &str| -> Vec<String> {
        let stacks = threads.iter().map(|thread| thread[kind].to_string());
        stacks.filter(|stack| stack != "null").collect()
    };
    let kernel = stacks("kernel_stack");
    assert!(!kernel.is_empty(), "{finding}");
    assert!(
        kernel.iter().any(|stack| stack.contains("poll")),
        "{kernel:?}"
    );
    assert!(
        stacks("user_stack")
            .iter()
            .all(|stack| !stack.contains("not to be read")),
        "{finding}"
    );
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_helper_ends_with_its_watch_however_that_ends() {
    let other = Target::script("echo up; exec sleep 100");
    let mut watch = shmtrace(&[
        "--no-canary",
        "--format",
        "json",
        "--pid-tree",
        &other.arg(),
    ]);
    let mut watch = Target::start(&mut watch);
    watch.line();
    let helpers = shmtrace::process::children(watch.pid());
    assert_eq!(helpers.len(), 1);
    let pid = rustix::process::Pid::from_raw(watch.pid().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    watch.code();
    assert!(eventually(|| !crate::support::exists(helpers[0])));
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_command_that_is_run_keeps_all_its_rights() {
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let ran = run(&["run", "--quiet", "--", "cat", "/proc/self/status"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for name in ["NoNewPrivs", "Seccomp"] {
        assert_eq!(
            fields(&ran.stdout, 10)[name],
            fields(&own, 10)[name],
            "{ran:?}"
        );
    }
    for name in ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"] {
        assert_eq!(
            fields(&ran.stdout, 16)[name],
            fields(&own, 16)[name],
            "{ran:?}"
        );
    }
}

/// Runs the program as nobody, with these capabilities and no others.
fn run_with(program: &Path, capabilities: &[&str], args: &[&str]) -> Ran {
    let sets: Vec<String> = capabilities.iter().map(|name| format!("+{name}")).collect();
    let sets = sets.join(",");
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    command.args([
        format!("--inh-caps={sets}"),
        format!("--ambient-caps={sets}"),
    ]);
    command
        .arg(program)
        .args(args)
        .current_dir("/")
        .stdin(Stdio::null());
    Ran::from(command.output().unwrap())
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn five_capabilities_do_instead_of_root_and_each_that_is_missing_is_named() {
    const ALL: [&str; 5] = [
        "bpf",
        "perfmon",
        "sys_ptrace",
        "dac_read_search",
        "checkpoint_restore",
    ];
    let (_folder, program) = program_for_all();
    let host = Host::hung(Kind::Sim);
    let watch = [
        "--duration",
        "2s",
        "--fail-on",
        "missed-wakeup",
        "--pid-tree",
        &host.arg(),
    ];
    let ran = run_with(&program, &ALL, &watch);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.stdout.contains("MISSED missed-wakeup"), "{ran:?}");
    assert!(ran.stdout.contains("without CAP_SYS_ADMIN"), "{ran:?}");
    for left_out in &ALL[..4] {
        let rest: Vec<&str> = ALL.into_iter().filter(|name| name != left_out).collect();
        let ran = run_with(&program, &rest, &watch);
        assert_eq!(ran.code, Some(5), "without {left_out}: {ran:?}");
        let missing = format!("CAP_{} missing", left_out.to_uppercase());
        assert!(ran.stderr.contains(&missing), "without {left_out}: {ran:?}");
        assert!(!ran.stderr.contains("kernel cannot"), "{ran:?}");
        let ran = run_with(&program, &rest, &["doctor"]);
        let missing = format!("CAP_{} (", left_out.to_uppercase());
        assert!(ran.stdout.contains(&missing), "without {left_out}: {ran:?}");
    }
    let none = run_as_nobody(&program, &watch);
    assert_eq!(none.code, Some(5), "{none:?}");
    assert!(
        none.stderr.contains("CAP_PERFMON, CAP_BPF missing"),
        "{none:?}"
    );
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn what_sudo_writes_belongs_to_the_user_who_called_it() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let host = Host::hung(Kind::Sim);
    let busy = Host::healthy(Kind::Sim);
    let calls: [&[&str]; 4] = [
        &[
            "record",
            "-o",
            &path("a"),
            "--duration",
            "300ms",
            "--pid-tree",
            &host.arg(),
        ],
        &[
            "--record",
            &path("b"),
            "--duration",
            "300ms",
            "--pid-tree",
            &host.arg(),
        ],
        &[
            "--record-findings",
            &path("c"),
            "--duration",
            "1s",
            "--pid-tree",
            &host.arg(),
        ],
        &[
            "profile",
            "--off-cpu",
            "-o",
            &path("d"),
            "--duration",
            "300ms",
            "--pid-tree",
            &busy.arg(),
        ],
    ];
    for call in calls {
        let mut command = shmtrace(call);
        command.env("SUDO_UID", "65534").env("SUDO_GID", "65533");
        let ran = Ran::from(command.output().unwrap());
        assert_eq!(ran.code, Some(0), "{call:?}: {ran:?}");
    }
    let findings = fs::read_dir(folder.path().join("c")).unwrap();
    let findings: Vec<_> = findings.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(findings.len(), 1, "{findings:?}");
    let files = ["a", "b", "c", "d"].map(|name| folder.path().join(name));
    for file in files.iter().chain(&findings) {
        let metadata = fs::metadata(file).unwrap();
        assert_eq!(
            (metadata.uid(), metadata.gid()),
            (65534, 65533),
            "{}",
            file.display()
        );
        assert!(metadata.len() > 0, "{}", file.display());
    }
    // Root itself keeps what it makes.
    let ran = run(&[
        "record",
        "-o",
        &path("e"),
        "--duration",
        "300ms",
        "--pid-tree",
        &host.arg(),
    ]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(fs::metadata(path("e")).unwrap().uid(), 0);
}
