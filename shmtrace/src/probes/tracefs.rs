//! The numbers of classic tracepoints stand in tracefs, which is not mounted everywhere.

use std::{io, path::Path};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Where the kernel has it mounted, and where we mount it.
const MOUNT_POINT: &str = "/sys/kernel/tracing";
/// Where older systems have it.
const OLD_MOUNT_POINT: &str = "/sys/kernel/debug/tracing";

/// tracefs is mounted while this lives.
pub(super) struct Tracefs {
    /// By us, so that nothing of it is left behind.
    ours: bool,
}

impl Tracefs {
    /// Mounts it unless it is there.
    pub(super) fn mount_if_missing() -> io::Result<Self> {
        let is_there = |mounted: &str| Path::new(mounted).join("events/syscalls").is_dir();
        if is_there(MOUNT_POINT) || is_there(OLD_MOUNT_POINT) {
            return Ok(Self { ours: false });
        }
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("tracefs", MOUNT_POINT, "tracefs", flags, None)?;
        Ok(Self { ours: true })
    }
}

/// The number of the tracepoint at the exit of a call.
pub(super) fn number(call: &str) -> io::Result<u64> {
    let read = |mounted: &str| {
        std::fs::read_to_string(format!("{mounted}/events/syscalls/sys_exit_{call}/id"))
    };
    let text = read(MOUNT_POINT).or_else(|_| read(OLD_MOUNT_POINT))?;
    let number = text.trim().parse();
    number.map_err(|_| io::ErrorKind::InvalidData.into())
}

impl Drop for Tracefs {
    fn drop(&mut self) {
        // Another shmtrace may be using it at this moment: it keeps what it has opened.
        if self.ours
            && let Err(e) = unmount(MOUNT_POINT, UnmountFlags::DETACH)
        {
            tracing::debug!("cannot unmount {MOUNT_POINT}: {e}");
        }
    }
}
