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
    /// Whether files on these devices may block, as it was found at `devices_at`.
    devices: BTreeMap<(u32, u32), bool>,
    devices_at: Mono,
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
        if self.files.len() >= MAX_FILES && !self.files.contains_key(&file) {
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

    /// Whether opening the file could keep this process waiting for another one, or for a server.
    pub(crate) fn may_block(&mut self, process: &Process, file: FileKey, now: Mono) -> bool {
        // Device numbers are reused, so what they stood for a while ago says nothing.
        if self.devices_at != now {
            self.devices_at = now;
            self.devices.clear();
        }
        let device = (file.major, file.minor);
        let look = || process.may_block(device);
        *self.devices.entry(device).or_insert_with(look)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn with_more_files_than_are_remembered_all_are_looked_at_anew() {
        let mut dismissed = Dismissed::default();
        let file = |inode| FileKey {
            major: 1,
            minor: 2,
            inode,
        };
        // Looked at when they were no longer young.
        for at in [0, YOUNG] {
            for inode in 0..MAX_FILES as u64 {
                dismissed.add(file(inode), Mono(at));
            }
        }
        assert!(!dismissed.is_due(file(0), Mono(YOUNG + 1)));
        dismissed.add(file(MAX_FILES as u64), Mono(YOUNG));
        assert!(dismissed.is_due(file(0), Mono(YOUNG + 1)));
        assert_eq!(dismissed.files.len(), 1);
    }
}
