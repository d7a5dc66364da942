//! Files that were looked at and are no hubs, and file systems that are not to be touched.

use std::collections::BTreeMap;

use shmtrace_engine::Mono;

use crate::process::{FileKey, Process};

/// Files remembered; when there are more, all are looked at anew.
const MAX_FILES: usize = 4_096;
/// A host maps its file before it writes the header: for so long a new file is looked at again and again (ns).
const YOUNG: u64 = 2_000_000_000;
/// How often an old file is looked at again: inode numbers are reused (ns).
const AGAIN: u64 = 5_000_000_000;

/// What was dismissed.
#[derive(Debug, Default)]
pub(crate) struct Dismissed {
    files: BTreeMap<FileKey, Dismissal>,
    devices: BTreeMap<(u32, u32), bool>,
}

#[derive(Debug, Clone, Copy)]
struct Dismissal {
    first: Mono,
    last: Mono,
}

impl Dismissed {
    /// Whether a look at this file is due.
    pub(crate) fn is_due(&self, file: FileKey, now: Mono) -> bool {
        // While it is young, once when it no longer is (to say what is wrong with it), and then rarely.
        self.files.get(&file).is_none_or(|known| {
            known.last.since(known.first) < YOUNG || now.since(known.last) >= AGAIN
        })
    }

    /// It was no hub. True if it is young, so that it may become one.
    pub(crate) fn add(&mut self, file: FileKey, now: Mono) -> bool {
        if self.files.len() >= MAX_FILES {
            self.files.clear();
        }
        let known = self.files.entry(file).or_insert(Dismissal {
            first: now,
            last: now,
        });
        known.last = now;
        now.since(known.first) < YOUNG
    }

    /// It is a hub after all.
    pub(crate) fn remove(&mut self, file: FileKey) {
        self.files.remove(&file);
    }

    /// Whether the file lies on a file system that another process serves, which could keep a reader waiting.
    pub(crate) fn is_served_by_a_process(&mut self, process: &Process, file: FileKey) -> bool {
        let device = (file.major, file.minor);
        if let Some(known) = self.devices.get(&device) {
            return *known;
        }
        let mut mounts = Vec::new();
        if process.read_into("mountinfo", &mut mounts).is_err() {
            return false;
        }
        if self.devices.len() >= MAX_FILES {
            self.devices.clear();
        }
        let served = file_system(&mounts, device)
            .is_some_and(|kind| kind == "fuse" || kind.starts_with("fuse."));
        self.devices.insert(device, served);
        served
    }
}

/// The type of the file system with this device number in `/proc/PID/mountinfo`.
pub(crate) fn file_system(mounts: &[u8], (major, minor): (u32, u32)) -> Option<String> {
    let device = format!("{major}:{minor}");
    String::from_utf8_lossy(mounts).lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (before.split(' ').nth(2)? == device)
            .then(|| after.split(' ').next().unwrap_or_default().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_found_by_device() {
        let mounts = b"22 1 0:21 / /proc rw shared:5 - proc proc rw\n\
            40 1 0:50 / /home/x/m rw,nosuid shared:9 master:1 - fuse.sshfs x@y:/ rw,user_id=0\n";
        assert_eq!(file_system(mounts, (0, 50)).as_deref(), Some("fuse.sshfs"));
        assert_eq!(file_system(mounts, (0, 21)).as_deref(), Some("proc"));
        assert_eq!(file_system(mounts, (0, 5)), None);
        assert_eq!(file_system(b"garbage - \n", (0, 5)), None);
    }

    #[test]
    fn a_young_file_is_looked_at_again_and_an_old_one_seldom() {
        let mut dismissed = Dismissed::default();
        let file = FileKey {
            major: 1,
            minor: 2,
            inode: 3,
        };
        assert!(dismissed.is_due(file, Mono(0)));
        assert!(dismissed.add(file, Mono(0)));
        assert!(dismissed.is_due(file, Mono(YOUNG - 1)));
        assert!(!dismissed.add(file, Mono(YOUNG)));
        assert!(!dismissed.is_due(file, Mono(YOUNG + 1)));
        assert!(dismissed.is_due(file, Mono(YOUNG + AGAIN)));
    }
}
