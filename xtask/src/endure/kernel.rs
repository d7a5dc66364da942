//! What the kernel holds for a process, and whether it still does.

use std::{collections::BTreeSet, fs, io, path::PathBuf};

use crate::process;

/// A kind of BPF object, and the command of `bpf(2)` that lists its ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Program = 11,
    Map = 12,
    Btf = 23,
    Link = 31,
}

pub(super) const KINDS: [Kind; 4] = [Kind::Program, Kind::Map, Kind::Btf, Kind::Link];

/// The ids of all BPF objects of a kind that the kernel has now.
pub(super) fn ids(kind: Kind) -> io::Result<BTreeSet<u32>> {
    /// The part of `union bpf_attr` that these commands use.
    #[repr(C)]
    #[derive(Default)]
    struct Next {
        start_id: u32,
        id: u32,
        open_flags: u32,
    }
    let mut ids = BTreeSet::new();
    let mut attr = Next::default();
    loop {
        // SAFETY: the part of `union bpf_attr` that these commands use.
        match unsafe { process::bpf(kind as libc::c_int, &mut attr) } {
            Ok(_) => {
                ids.insert(attr.id);
                attr.start_id = attr.id;
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(ids),
            Err(error) => return Err(error),
        }
    }
}

/// The BPF objects that a process has fds of, by its `fdinfo`.
pub(super) fn objects_of(pid: u32) -> BTreeSet<(Kind, u32)> {
    let mut objects = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        for line in text.lines() {
            for (kind, name) in [
                (Kind::Program, "prog_id:"),
                (Kind::Map, "map_id:"),
                (Kind::Link, "link_id:"),
            ] {
                if let Some(id) = line
                    .strip_prefix(name)
                    .and_then(|id| id.trim().parse().ok())
                {
                    objects.insert((kind, id));
                }
            }
        }
    }
    objects
}

/// A process by pid and start time.
pub(super) type Identity = (u32, String);

/// The processes that a process has started, theirs included, that are there now.
pub(super) fn descendants(pid: u32) -> BTreeSet<Identity> {
    let mut found = BTreeSet::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        let tasks = fs::read_dir(format!("/proc/{parent}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children
                .split_whitespace()
                .filter_map(|pid| pid.parse().ok())
            {
                parents.push(child);
                found.extend(start_time(child).map(|start| (child, start)));
            }
        }
    }
    found
}

/// Whether that very process is still there, and no zombie.
pub(super) fn is_alive((pid, start): &Identity) -> bool {
    start_time(*pid).as_ref() == Some(start)
}

/// The start time of a process, as `/proc/PID/stat` has it; `None` for a zombie.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // The state is field 3, the start time field 22.
    (fields.next()? != "Z").then_some(())?;
    fields.nth(18).map(str::to_owned)
}

/// What the fds of a process lead to; empty if it is gone.
pub(super) fn fds(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"));
    let links = entries.into_iter().flatten().flatten();
    links
        .filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.display().to_string()))
        .collect()
}

/// The sockets among the fds of a process.
pub(super) fn sockets(pid: u32) -> BTreeSet<String> {
    let is_socket = |link: &String| link.starts_with("socket:");
    fds(pid).into_iter().filter(is_socket).collect()
}

/// A number of kB in `/proc/PID/status`.
pub(super) fn status_kib(pid: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim_start_matches(':')
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .ok()
}

/// What a tracer could leave behind in files: pinned objects, mounts, and files that are named like it.
pub(super) fn files() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![PathBuf::from("/sys/fs/bpf")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            found.insert(entry.path().display().to_string());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
        }
    }
    for folder in ["/tmp", "/dev/shm", "/run", "/var/tmp"] {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        found.extend(
            entries
                .filter(|entry| entry.file_name().to_string_lossy().contains("shmtrace"))
                .map(|entry| entry.path().display().to_string()),
        );
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    found.extend(mounts.lines().map(str::to_owned));
    found
}
