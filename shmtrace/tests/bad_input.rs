//! Wrong pids, missing rights, foreign and damaged hubs: each a clear message, a remedy, and the right exit code.

mod support;

use std::{
    fs::File,
    os::unix::process::CommandExt as _,
    process::{Child, Command},
};

use support::watch::run;

fn shmtrace(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shmtrace"));
    command.args(arguments);
    command
}

fn watch(pid: u32) -> (Option<i32>, String) {
    run(&mut shmtrace(&[
        "--pid-tree",
        &pid.to_string(),
        "--duration",
        "3s",
    ]))
}

/// A pid that no process has: that of a child which was waited for.
fn dead_pid() -> u32 {
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    child.id()
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn no_such_process() {
    let pid = dead_pid();
    let (code, said) = watch(pid);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("no such process: {pid}")), "{said}");
}

#[test]
fn no_pid_is_wrong_usage() {
    for arguments in [
        &[][..],
        &["--pid-tree", "0"],
        &["--pid-tree", "ddc"],
        &["--pid-tree", ""],
        &["--no-such-option"],
    ] {
        let (code, said) = run(&mut shmtrace(arguments));
        assert_eq!(code, Some(2), "{arguments:?}: {said}");
        assert!(!said.is_empty());
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn without_rights() {
    // The binary must be reachable for nobody.
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let program = folder.path().join("shmtrace");
    std::fs::copy(env!("CARGO_BIN_EXE_shmtrace"), &program).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).unwrap();
    let mut command = Command::new(&program);
    command.uid(65_534).gid(65_534).current_dir("/");
    let (code, said) = run(command.args(["--pid-tree", &std::process::id().to_string()]));
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("sudo shmtrace"), "{said}");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_process_without_a_hub() {
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    let (code, said) = watch(child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("maps a hub"), "{said}");
}

/// A process that maps `bytes` as a file; the mapping is made by Python, so that it is nobody's of ours.
fn mapper(folder: &std::path::Path, bytes: &[u8]) -> Child {
    let file = folder.join("hub.shm");
    std::fs::write(&file, bytes).unwrap();
    let script = "import mmap,sys,time\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\nopen(sys.argv[1]+'.mapped','w')\ntime.sleep(60)";
    let child = Command::new("python3")
        .args(["-c", script, file.to_str().unwrap()])
        .spawn()
        .unwrap();
    while File::open(folder.join("hub.shm.mapped")).is_err() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child
}

fn watch_mapper(bytes: &[u8]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut child = mapper(folder.path(), bytes);
    let result = watch(child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    result
}

/// A header that claims a whole hub.
fn header(version: u32) -> Vec<u8> {
    use shm_transport::layout::{self, hub};
    let mut bytes = vec![0; 4096];
    bytes[..8].copy_from_slice(&layout::MAGIC);
    bytes[hub::VERSION..][..4].copy_from_slice(&version.to_ne_bytes());
    bytes[hub::MAX_PEERS..][..2].copy_from_slice(&32_u16.to_ne_bytes());
    bytes[hub::RING_CAPACITY..][..4].copy_from_slice(&256_u32.to_ne_bytes());
    let rings = 256 + 32 * 64;
    let classes = rings + 32 * 2 * layout::ring::size(256) as u64;
    for (at, value) in [
        (hub::PEER_TABLE_OFFSET, 256),
        (hub::RING_REGION_OFFSET, rings),
        (hub::SIZE_CLASS_OFFSET, classes),
        (hub::EXTENT_REGION_OFFSET, classes + 5 * 192),
    ] {
        bytes[at..][..8].copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_truncated_hub() {
    let (code, said) = watch_mapper(&header(shm_transport::layout::VERSION));
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("cut short"), "{said}");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_hub_of_another_major_version() {
    let (code, said) = watch_mapper(&header(2 << 16));
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("version 2.0"), "{said}");
}
