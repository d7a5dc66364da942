//! Hub files that nobody uses any more.
//!
//! A hub file is removed only if it is a hub, if no process maps it or holds it open, and if its name still leads to the
//! file that was looked at. What cannot be seen counts as use: the maps of another user's process can hide a mapping,
//! unless the file's mode keeps that user out.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use shm_transport::layout;

use crate::{
    hub::looks_like_a_hub,
    process::{FileKey, Process},
};

/// A hub file by name, and which file that was when it was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HubFile {
    /// Its name in the file system that this process sees.
    pub path: PathBuf,
    /// Its inode number.
    pub inode: u64,
    /// Bytes from its begin to its end.
    pub size: u64,
    /// Bytes that it occupies, in memory if it lies on a tmpfs.
    pub occupied: u64,
    device: u64,
    owner: u32,
    mode: u32,
}

/// Who uses a hub file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Users {
    /// Processes that map it or hold it open, with their names.
    pub seen: Vec<(u32, String)>,
    /// Processes that could use it and whose maps may not be read.
    pub hidden: usize,
}

impl Users {
    /// Certainly nobody.
    pub fn is_nobody(&self) -> bool {
        self.seen.is_empty() && self.hidden == 0
    }
}

/// The hubs that these processes map, as far as their names still lead to them.
pub fn hubs_of(pids: impl IntoIterator<Item = u32>) -> Vec<HubFile> {
    let mut seen = BTreeSet::<FileKey>::new();
    let mut hubs = Vec::new();
    let mut buffer = Vec::new();
    for pid in pids {
        let Ok(process) = Process::open(pid) else {
            continue;
        };
        for entry in process.shared_mappings(&mut buffer).unwrap_or_default() {
            let new = !entry.deleted && seen.insert(entry.file);
            if !new || !looks_like_a_hub(&process, &entry).unwrap_or(false) {
                continue;
            }
            hubs.extend(
                HubFile::look(Path::new(&entry.path)).filter(|hub| hub.inode == entry.file.inode),
            );
        }
    }
    hubs.sort();
    hubs
}

/// The hubs in a folder, used or not. Files named like one that are none are left out: an empty one may be in the making.
pub fn stale_hubs(folder: &Path) -> io::Result<Vec<HubFile>> {
    let mut hubs: Vec<HubFile> = fs::read_dir(folder)?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            (path.extension()? == "shm").then(|| HubFile::look(&path))?
        })
        .collect();
    hubs.sort();
    Ok(hubs)
}

impl HubFile {
    /// The hub file of this name; `None` if it is no regular file that begins like a hub, or not to be seen.
    pub fn look(path: &Path) -> Option<Self> {
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let stat = rustix::fs::lstat(path).ok()?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return None;
        }
        let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
        let metadata = file.metadata().ok()?;
        let mut magic = [0; 8];
        if !metadata.is_file()
            || file.read_at(&mut magic, 0).ok()? != magic.len()
            || magic != layout::MAGIC
        {
            return None;
        }
        Some(Self {
            path: path.to_owned(),
            inode: metadata.ino(),
            size: metadata.len(),
            occupied: metadata.blocks() * 512,
            device: metadata.dev(),
            owner: metadata.uid(),
            mode: metadata.permissions().mode(),
        })
    }

    /// Who uses it now.
    pub fn users(&self) -> Users {
        let mut users = Users::default();
        let mut buffer = Vec::new();
        let Ok(entries) = fs::read_dir("/proc") else {
            users.hidden = 1;
            return users;
        };
        let pids = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| *pid != std::process::id());
        for pid in pids {
            let Ok(process) = Process::open(pid) else {
                continue;
            };
            let uses = self
                .is_mapped_by(&process, &mut buffer)
                .and_then(|maps| Ok(maps || self.is_held_by(pid)?));
            match uses {
                Ok(true) => {
                    let name = process.stat().map(|stat| stat.comm).unwrap_or_default();
                    users.seen.push((pid, name));
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    users.hidden += usize::from(self.admits(pid));
                }
                // Gone meanwhile, or without memory: a kernel thread, a zombie.
                Ok(false) | Err(_) => {}
            }
        }
        users
    }

    /// By inode number or by name, whatever the device: some file systems show another device in `maps` than in `stat`,
    /// and taking a stranger's file for this one only means to keep it.
    fn is_mapped_by(&self, process: &Process, buffer: &mut Vec<u8>) -> io::Result<bool> {
        let mappings = process.shared_mappings(buffer)?;
        Ok(mappings.iter().any(|entry| {
            entry.file.inode == self.inode || Path::new(&entry.path) == self.path && !entry.deleted
        }))
    }

    fn is_held_by(&self, pid: u32) -> io::Result<bool> {
        let fds = fs::read_dir(format!("/proc/{pid}/fd"))?;
        Ok(fds.flatten().any(|fd| {
            // Names first: following every fd could block on a file system that does not answer.
            fs::read_link(fd.path()).is_ok_and(|name| name == self.path)
                && fs::metadata(fd.path())
                    .is_ok_and(|held| (held.ino(), held.dev()) == (self.inode, self.device))
        }))
    }

    /// Whether a process of another user could have opened it for more than reading, as this program does.
    fn admits(&self, pid: u32) -> bool {
        const GROUP_OR_OTHERS: u32 = 0o066;
        let Ok(owner) = fs::metadata(format!("/proc/{pid}")).map(|metadata| metadata.uid()) else {
            return false;
        };
        match owner {
            0 => false,
            owner if owner == self.owner => true,
            _ => self.mode & GROUP_OR_OTHERS != 0,
        }
    }

    /// Removes the name, if it still leads to this file; false if it does not.
    pub fn remove(&self) -> io::Result<bool> {
        let (Some(folder), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Ok(false);
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(folder, flags, Mode::empty())?;
        match rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(now) if (now.st_ino, now.st_dev) == (self.inode, self.device) => {}
            Ok(_) | Err(rustix::io::Errno::NOENT) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        rustix::fs::unlinkat(&folder, name, AtFlags::empty())?;
        Ok(true)
    }
}
