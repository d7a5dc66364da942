//! `shmtrace kill`: everything of the tree, nothing else, and the hubs.

use std::{fs, path::Path, process::Command};

use crate::support::{Target, eventually, exists, run, sibling};

/// Pids of processes that have `marker` among the words of their command line.
fn marked(marker: &str) -> Vec<u32> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                line.split(|byte| *byte == 0)
                    .any(|word| word == marker.as_bytes())
            })
        })
        .collect()
}

/// The first bytes of a hub: what makes a file one for `kill`.
fn write_hub(path: &Path) {
    fs::write(path, [&b"RAPAHUB\0"[..], &[0; 4088]].concat()).unwrap();
}

#[test]
fn the_whole_tree_ends_and_a_bystander_does_not() {
    let mut bystander = Target::script("echo up; sleep 1000");
    bystander.line();
    let mut tree = Target::script(
        "bash -c 'trap \"\" TERM; sleep 1000 & echo stubborn; wait; sleep 1000' & sleep 1000 & wait",
    );
    assert_eq!(tree.line(), "stubborn");
    let members = {
        let dry = run(&["kill", "--dry-run", "--pid-tree", &tree.arg()]);
        assert_eq!(dry.code, Some(0));
        assert!(
            dry.stdout
                .lines()
                .all(|line| line.starts_with("would end ")),
            "{}",
            dry.stdout
        );
        pids_of(&dry.stdout)
    };
    assert!(members.len() >= 4, "{members:?}");
    assert!(
        members.iter().all(|pid| exists(*pid)),
        "a dry run ended something"
    );

    let ran = run(&["kill", "--timeout", "200ms", "--pid-tree", &tree.arg()]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(!tree.is_alive());
    assert!(members.iter().all(|pid| !exists(*pid)), "{ran:?}");
    assert!(
        ran.stdout.contains(" after SIGTERM\n") && ran.stdout.contains(" by SIGKILL\n"),
        "{ran:?}"
    );
    assert!(bystander.is_alive());
}

/// The numbers in brackets of each line.
fn pids_of(lines: &str) -> Vec<u32> {
    lines
        .lines()
        .filter_map(|line| line.split_once('[')?.1.split_once(']')?.0.parse().ok())
        .collect()
}

#[test]
fn children_that_appear_meanwhile_end_too() {
    // Its answer to SIGTERM is to start more processes.
    let marker = format!("777.{}", std::process::id());
    let script = format!(
        "trap 'for i in 1 2 3 4 5; do bash -c \"trap : TERM; sleep {marker}; sleep {marker}; sleep {marker}\" & sleep 0.01; done' TERM; \
         echo up; while :; do sleep 0.05; done"
    );
    let mut tree = Target::script(&script);
    tree.line();
    let ran = run(&["kill", "--timeout", "300ms", "--pid-tree", &tree.arg()]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(pids_of(&ran.stdout).len() > 5, "{ran:?}");
    assert_eq!(marked(&marker), Vec::<u32>::new(), "{ran:?}");
}

#[test]
fn a_tree_that_forks_all_the_time_ends() {
    let marker = format!("778.{}", std::process::id());
    let mut tree = Target::script(&format!(
        "trap '' TERM; echo up; while :; do sleep {marker} & (exec true); done"
    ));
    tree.line();
    let ran = run(&["kill", "--timeout", "100ms", "--pid-tree", &tree.arg()]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(marked(&marker), Vec::<u32>::new());
}

#[test]
fn a_stopped_tree_ends() {
    let mut tree = Target::script("echo up; sleep 1000 & kill -STOP $$; wait");
    tree.line();
    let stat = format!("/proc/{}/stat", tree.pid());
    assert!(eventually(|| fs::read_to_string(&stat)
        .unwrap()
        .contains(") T ")));
    let ran = run(&["kill", "--pid-tree", &tree.arg()]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(
        !ran.stdout.contains("SIGKILL"),
        "SIGTERM is enough: {ran:?}"
    );
    assert!(!tree.is_alive());
}

#[test]
fn its_hub_goes_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let hub = folder.path().join("a hub.shm");
    let mut host = Target::start(
        Command::new(sibling("rapace-peer-04"))
            .args([
                "host",
                "--plugins",
                "2",
                "--round-trips",
                "0",
                "--gap",
                "1ms",
                "--keep-hub",
                "--hub",
            ])
            .arg(&hub),
    );
    host.line();
    assert!(eventually(|| {
        let stale = run(&[
            "kill",
            "--stale",
            "--hub-dir",
            folder.path().to_str().unwrap(),
        ]);
        stale.stdout.contains("kept ") && stale.stdout.contains("in use by ")
    }));
    let dry = run(&["kill", "--dry-run", "--pid-tree", &host.arg()]);
    assert!(
        dry.stdout
            .contains(&format!("would remove {}", hub.display())),
        "{dry:?}"
    );
    assert!(hub.exists());
    let ran = run(&["kill", "--pid-tree", &host.arg()]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(
        ran.stdout.contains(&format!("removed {}", hub.display())),
        "{ran:?}"
    );
    assert!(!hub.exists());
    assert!(!host.is_alive());
}

#[test]
fn stale_hubs_are_removed_and_used_ones_kept() {
    let folder = tempfile::tempdir().unwrap();
    let name = |name: &str| folder.path().join(name);
    write_hub(&name("dodeca-hub-1.shm"));
    write_hub(&name("mapped.shm"));
    write_hub(&name("notes.txt"));
    fs::write(name("other.shm"), "no hub at all").unwrap();
    std::os::unix::fs::symlink(name("notes.txt"), name("link.shm")).unwrap();
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(name("mapped.shm"))
        .unwrap();
    // SAFETY: nobody writes to the file while it is mapped, and nothing is read through the mapping.
    let mapping = unsafe { memmap2::MmapOptions::new().map_mut(&file) }.unwrap();
    drop(file);

    let args = [
        "kill",
        "--stale",
        "--hub-dir",
        folder.path().to_str().unwrap(),
    ];
    let dry = run(&[&args[..], &["--dry-run"]].concat());
    assert!(dry.stdout.contains("would remove"), "{dry:?}");
    assert!(name("dodeca-hub-1.shm").exists());

    let ran = run(&args);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(!name("dodeca-hub-1.shm").exists());
    for kept in ["mapped.shm", "notes.txt", "other.shm", "link.shm"] {
        assert!(fs::symlink_metadata(name(kept)).is_ok(), "{kept}");
    }
    let own = format!("[{}]", std::process::id());
    assert!(
        ran.stdout.contains("kept ") && ran.stdout.contains(&own),
        "{ran:?}"
    );
    drop(mapping);
    run(&args);
    assert!(!name("mapped.shm").exists());
}

#[test]
fn wrong_use_is_refused_with_a_remedy() {
    let nobody = run(&["kill"]);
    assert_eq!(nobody.code, Some(2));
    assert!(nobody.stderr.contains("--pid-tree"), "{nobody:?}");
    let own = run(&["kill", "--pid-tree", &std::process::id().to_string()]);
    assert_eq!(own.code, Some(2));
    assert!(own.stderr.contains("itself"), "{own:?}");
    let init = run(&["kill", "--pid-tree", "1"]);
    assert_eq!(init.code, Some(2));
    let gone = run(&["kill", "--pid-tree", "4194300"]);
    assert_eq!(gone.code, Some(1));
    assert!(gone.stderr.contains("no such process: 4194300"), "{gone:?}");
}
