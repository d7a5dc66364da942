//! Files that are written for a person: they are that person's own, and nobody else chose where they are.
//!
//! Started through sudo, what this program creates is given to the user who called it. As root it could be led astray in
//! a folder where everybody may make files, such as `/tmp`: by a link to a file of the victim's, or by a file that another
//! user made there before to read what comes. Kernels refuse that themselves if `fs.protected_symlinks` and the like are
//! set; here it is refused whether they are or not.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Component, Path},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Uid},
    io::Errno,
};

/// Links that are followed on the way to a file.
const MOST_LINKS: usize = 40;
/// Bits of a folder in which everybody may make files, and only their owners may remove them.
const SHARED: u32 = 0o1002;
/// A new file, as far as the umask lets it.
const FILE: Mode = Mode::from_raw_mode(0o666);
/// A new folder, as far as the umask lets it.
const FOLDER: Mode = Mode::from_raw_mode(0o777);

/// Creates (or truncates) a file. A new one belongs to the user who called sudo, if that is how root came about.
pub fn create(path: &Path) -> io::Result<File> {
    let mut walk = Walk::new(path)?;
    let name = walk.rest.pop_back().ok_or(Errno::ISDIR)?;
    walk.walk_all(false)?;
    walk.rest.push_back(name);
    while let Some(name) = walk.rest.pop_front() {
        if !walk.rest.is_empty() {
            walk.enter(&name, false)?;
            continue;
        }
        match walk.create_or_open(&name) {
            Err(Errno::LOOP) => walk.follow(&name)?,
            Err(Errno::NXIO) if walk.is_proc() => return open_magic(&walk.folder, &name),
            other => return Ok(other?.into()),
        }
    }
    Err(Errno::ISDIR.into())
}

/// Makes a folder and those above it, where they are missing; new ones belong to the user who called sudo.
pub fn create_folder(path: &Path) -> io::Result<()> {
    Walk::new(path)?.walk_all(true)
}

/// A user to whom files are given.
#[derive(Debug, Clone, Copy)]
struct Invoker {
    uid: u32,
    gid: u32,
}

impl Invoker {
    /// Who called sudo.
    fn of_sudo() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let id = |name| std::env::var(name).ok()?.parse().ok();
        Some(Self {
            uid: id("SUDO_UID")?,
            gid: id("SUDO_GID")?,
        })
    }
}

/// A path that is walked name by name.
struct Walk {
    folder: OwnedFd,
    rest: VecDeque<OsString>,
    links: usize,
    invoker: Option<Invoker>,
}

impl Walk {
    fn new(path: &Path) -> io::Result<Self> {
        let mut walk = Self {
            folder: open_folder(CWD, OsStr::new("."))?,
            rest: VecDeque::new(),
            links: 0,
            invoker: Invoker::of_sudo(),
        };
        walk.prepend(path)?;
        Ok(walk)
    }

    /// What a path says is to be walked before the rest.
    fn prepend(&mut self, path: &Path) -> Result<(), Errno> {
        for component in path.components().rev() {
            match component {
                Component::Normal(name) => self.rest.push_front(name.to_owned()),
                Component::ParentDir => self.rest.push_front("..".into()),
                Component::RootDir => self.folder = open_folder(CWD, OsStr::new("/"))?,
                Component::CurDir | Component::Prefix(_) => {}
            }
        }
        Ok(())
    }

    fn walk_all(&mut self, make: bool) -> io::Result<()> {
        while let Some(name) = self.rest.pop_front() {
            self.enter(&name, make)?;
        }
        Ok(())
    }

    /// Goes into a folder, or where a link leads.
    fn enter(&mut self, name: &OsStr, make: bool) -> io::Result<()> {
        match open_folder(&self.folder, name) {
            Ok(folder) => self.folder = folder,
            Err(Errno::NOENT) if make => {
                rustix::fs::mkdirat(&self.folder, name, FOLDER)?;
                let folder = open_folder(&self.folder, name)?;
                if let Some(Invoker { uid, gid }) = self.invoker {
                    let (owner, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                    rustix::fs::chownat(&folder, "", owner, group, AtFlags::EMPTY_PATH)?;
                }
                self.folder = folder;
            }
            // With O_PATH a link is no folder.
            Err(Errno::NOTDIR | Errno::LOOP) => self.follow(name)?,
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Takes what a link says in place of its name.
    fn follow(&mut self, name: &OsStr) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let link = rustix::fs::openat(&self.folder, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&link)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return Err(Errno::NOTDIR.into());
        }
        self.links += 1;
        if self.links > MOST_LINKS {
            return Err(Errno::LOOP.into());
        }
        if self.is_a_trap(&stat)? {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "{} is a link that user {} put into a folder of everybody's",
                    name.display(),
                    stat.st_uid
                ),
            ));
        }
        let target = rustix::fs::readlinkat(&link, "", Vec::new())?;
        self.prepend(Path::new(OsStr::new(
            target.to_str().map_err(|_| Errno::ILSEQ)?,
        )))?;
        Ok(())
    }

    /// A new file, or the one that is there, emptied.
    fn create_or_open(&self, name: &OsStr) -> Result<OwnedFd, Errno> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
        let new = flags | OFlags::CREATE | OFlags::EXCL;
        match rustix::fs::openat(&self.folder, name, new, FILE) {
            Ok(file) => {
                if let Some(Invoker { uid, gid }) = self.invoker {
                    let (owner, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                    rustix::fs::fchown(&file, owner, group)?;
                }
                return Ok(file);
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        if self.is_proc() {
            return Err(Errno::NXIO);
        }
        // What waits for a reader is not waited for.
        let there = flags | OFlags::NONBLOCK;
        let file = rustix::fs::openat(&self.folder, name, there, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if self.is_a_trap(&stat)? || stat.st_nlink > 1 && self.is_shared()? {
            return Err(Errno::PERM);
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            rustix::fs::ftruncate(&file, 0)?;
        }
        let flags = rustix::fs::fcntl_getfl(&file)?;
        rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
        Ok(file)
    }

    /// Somebody else put it where everybody may put something.
    fn is_a_trap(&self, stat: &Stat) -> Result<bool, Errno> {
        let trusted = [
            Some(0),
            Some(rustix::process::geteuid().as_raw()),
            self.invoker.map(|invoker| invoker.uid),
        ];
        Ok(!trusted.contains(&Some(stat.st_uid)) && self.is_shared()?)
    }

    fn is_shared(&self) -> Result<bool, Errno> {
        Ok(rustix::fs::fstat(&self.folder)?.st_mode & SHARED == SHARED)
    }

    fn is_proc(&self) -> bool {
        rustix::fs::fstatfs(&self.folder).is_ok_and(|fs| fs.f_type == rustix::fs::PROC_SUPER_MAGIC)
    }
}

fn open_folder(folder: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(folder, name, flags, Mode::empty())
}

/// A link of `/proc/PID/fd` leads to what is open, whatever it says: `/dev/stdout` ends there.
fn open_magic(folder: &OwnedFd, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOCTTY | OFlags::CLOEXEC;
    let folder: BorrowedFd<'_> = folder.as_fd();
    Ok(rustix::fs::openat(folder, name, flags, Mode::empty())?.into())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Write as _,
        os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    };

    use super::*;

    fn written(path: &Path) -> io::Result<()> {
        create(path)?.write_all(b"new")
    }

    #[test]
    fn files_are_made_emptied_and_found_through_links_of_ones_own() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        fs::write(&file, "something long").unwrap();
        written(&file).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        let link = folder.path().join("link");
        symlink("deep/../b", &link).unwrap();
        assert!(written(&link).is_err(), "no folder of that name");
        create_folder(&folder.path().join("deep/er")).unwrap();
        written(&link).unwrap();
        assert_eq!(fs::read(folder.path().join("b")).unwrap(), b"new");
        symlink(folder.path().join("deep"), folder.path().join("d")).unwrap();
        written(&folder.path().join("d/er/../c")).unwrap();
        assert_eq!(fs::read(folder.path().join("deep/c")).unwrap(), b"new");
        symlink("loop", folder.path().join("loop")).unwrap();
        assert!(written(&folder.path().join("loop")).is_err());
        assert!(written(folder.path()).is_err(), "a folder is no file");
        assert!(written(Path::new("/")).is_err());
        assert!(written(&file.join("x")).is_err(), "a file is no folder");
    }

    #[test]
    fn devices_and_what_is_open_already_can_be_written_to() {
        written(Path::new("/dev/null")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = File::create(folder.path().join("open")).unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        written(Path::new(&format!("/dev/fd/{fd}"))).unwrap();
        assert_eq!(fs::read(folder.path().join("open")).unwrap(), b"new");
    }

    #[test]
    #[ignore = "privileged: run by cargo xtask test"]
    fn nobody_else_chooses_what_root_writes_to() {
        let folder = tempfile::tempdir().unwrap();
        let shared = folder.path().join("shared");
        fs::create_dir(&shared).unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, "precious").unwrap();

        // Whoever made it, the file that it leads to would be lost.
        let link = shared.join("link");
        symlink(&victim, &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(65534), None).unwrap();
        assert!(written(&link).is_err());
        let below = shared.join("folder");
        symlink(folder.path(), &below).unwrap();
        std::os::unix::fs::lchown(&below, Some(65534), None).unwrap();
        assert!(written(&below.join("victim")).is_err());
        // Hard links, and files that another user made there before.
        fs::hard_link(&victim, shared.join("hard")).unwrap();
        assert!(written(&shared.join("hard")).is_err());
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        let theirs = shared.join("theirs");
        fs::write(&theirs, "bait").unwrap();
        std::os::unix::fs::chown(&theirs, Some(65534), None).unwrap();
        assert!(written(&theirs).is_err());

        // One's own are as good as anywhere.
        symlink(&victim, shared.join("own")).unwrap();
        written(&shared.join("own")).unwrap();
        assert_eq!(fs::metadata(&victim).unwrap().uid(), 0);
        assert_eq!(fs::read(&victim).unwrap(), b"new");
    }
}
