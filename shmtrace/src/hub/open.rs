//! Opening a hub file without being caught: no FIFO, no device, no file system that can keep us waiting.

use std::{
    cell::RefCell,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt as _,
    },
    path::Path,
};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use shm_transport::layout::{self, hub};

use super::{
    Geometry, Header, HubError, HubProblem, HubReader, guard, guard::Guard, residency::Residency,
};
use crate::process::{MapEntry, Process};

impl HubReader {
    /// Opens the file that a process maps at `entry`, also when its path is gone or leads elsewhere by now.
    pub fn open_mapping(process: &Process, entry: &MapEntry) -> Result<Self, HubError> {
        open_mapped_file(process, entry)
            .and_then(|file| Self::from_file(file, entry.path.clone()))
            .map_err(|problem| HubError {
                path: entry.path.clone(),
                problem,
            })
    }

    /// Opens a hub by its path, a dead one too.
    pub fn open_path(path: &Path) -> Result<Self, HubError> {
        let name = path.display().to_string();
        open_regular(CWD, path)
            .and_then(|file| Self::from_file(file, name.clone()))
            .map_err(|problem| HubError {
                path: name,
                problem,
            })
    }

    /// Opens a hub by its path even if it was cut short, with what is wrong with it: what lies after the cut reads as
    /// missing.
    pub fn open_damaged(path: &Path) -> Result<(Self, Option<HubProblem>), HubError> {
        let name = path.display().to_string();
        open_regular(CWD, path)
            .and_then(|file| Self::from_damaged_file(file, name.clone()))
            .map_err(|problem| HubError {
                path: name,
                problem,
            })
    }

    /// The header of a file, whatever it says; `None` if it is no file, or shorter.
    pub fn header_of(path: &Path) -> Option<Header> {
        let mut header = [0; hub::SIZE];
        let file = open_regular(CWD, path).ok()?;
        file.read_exact_at(&mut header, 0).ok()?;
        Some(Header::parse(&header))
    }

    fn from_file(file: File, path: String) -> Result<Self, HubProblem> {
        match Self::from_damaged_file(file, path)? {
            (reader, None) => Ok(reader),
            (_, Some(problem)) => Err(problem),
        }
    }

    fn from_damaged_file(
        file: File,
        path: String,
    ) -> Result<(Self, Option<HubProblem>), HubProblem> {
        let size = file.metadata()?.len();
        if size < hub::SIZE as u64 {
            return Err(HubProblem::TooShort { size });
        }
        let mut header = [0; hub::SIZE];
        file.read_exact_at(&mut header, 0)?;
        let (geometry, problem) = match Geometry::parse(&header, size) {
            Err(problem @ HubProblem::Truncated { .. }) => {
                // The same, had it not been cut.
                (Geometry::parse(&header, u64::MAX)?, Some(problem))
            }
            other => (other?, None),
        };
        let page = rustix::param::page_size();
        let bytes = geometry.control_bytes().next_multiple_of(page);
        let control = map(&file, bytes)?;
        let guard = Guard::register(control.as_ptr(), bytes)?.ok_or(HubProblem::TooMany {
            limit: guard::MAX_GUARDED,
        })?;
        let reader = Self {
            path,
            file,
            geometry,
            guard,
            control,
            residency: RefCell::new(Residency::new(bytes / page)),
            opened_size: size,
        };
        Ok((reader, problem))
    }
}

/// Maps the first `bytes` of the file, read-only and shared; the end may lie within the file's last page or beyond.
fn map(file: &File, bytes: usize) -> io::Result<MmapRaw> {
    MmapOptions::new().len(bytes).map_raw_read_only(file)
}

/// Whether the file that a process maps begins like a hub. Reads eight bytes and touches no page of a hole.
pub fn looks_like_a_hub(process: &Process, entry: &MapEntry) -> Result<bool, HubProblem> {
    let file = open_mapped_file(process, entry)?;
    let mut magic = [0; 8];
    Ok(file.read_at(&mut magic, 0)? == magic.len() && magic == layout::MAGIC)
}

/// Through `/proc/PID/map_files`, which leads to the mapped file itself. Where that is not permitted, by the path as
/// the process sees it, if it still leads to the same inode.
fn open_mapped_file(process: &Process, entry: &MapEntry) -> Result<File, HubProblem> {
    let link = format!("map_files/{:x}-{:x}", entry.start, entry.end);
    match open_regular(process.dir(), Path::new(&link)) {
        Err(HubProblem::Io(error)) if error.kind() == io::ErrorKind::PermissionDenied => {}
        opened => return opened,
    }
    let file =
        open_regular(CWD, &process.path_in_root(&entry.path)).map_err(|problem| match problem {
            HubProblem::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                HubProblem::Replaced
            }
            other => other,
        })?;
    let stat = rustix::fs::fstat(&file).map_err(io::Error::from)?;
    if entry.deleted || stat.st_ino != entry.file.inode {
        return Err(HubProblem::Replaced);
    }
    Ok(file)
}

/// Opens `path` only if it is a regular file: looked at through an `O_PATH` descriptor first, which opens nothing, so
/// that neither a FIFO nor a device in its place has any effect, and then opened through that descriptor.
fn open_regular(dir: impl AsFd, path: &Path) -> Result<File, HubProblem> {
    let found: OwnedFd =
        rustix::fs::openat(dir, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(io::Error::from)?;
    let stat = rustix::fs::fstat(&found).map_err(io::Error::from)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(HubProblem::NotRegular);
    }
    let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&found));
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(again, flags, Mode::empty()).map_err(io::Error::from)?;
    Ok(File::from(file))
}
