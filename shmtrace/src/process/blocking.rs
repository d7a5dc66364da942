//! File systems on which a file may keep whoever opens it waiting.

use std::sync::OnceLock;

use rustix::fs::MemfdFlags;

use super::Process;

impl Process {
    /// Whether opening or reading a file on this device could keep this process waiting for another one, or for a server.
    /// What nobody has mounted (any more) may be anything, but for the kernel's own tmpfs, on which files without a name lie.
    pub(crate) fn may_block(&self, device: (u32, u32)) -> bool {
        let mut mounts = Vec::new();
        let own = || std::fs::read("/proc/self/mountinfo").unwrap_or_default();
        // What lies below an overlay is mounted outside of its container.
        let kind = self
            .read_into("mountinfo", &mut mounts)
            .ok()
            .and_then(|()| file_system(&mounts, device))
            .or_else(|| file_system(&own(), device));
        match kind {
            Some(kind) => is_served(&kind),
            None => Some(device) != unnamed_files(),
        }
    }
}

/// File systems that another process or another machine serves.
fn is_served(kind: &str) -> bool {
    const SERVED: [&str; 8] = [
        "fuse", "fuseblk", "nfs", "nfs4", "cifs", "smb3", "ceph", "afs",
    ];
    SERVED.contains(&kind) || kind.starts_with("fuse.") || kind.starts_with("fuseblk.")
}

/// The device on which a memfd lies.
fn unnamed_files() -> Option<(u32, u32)> {
    static DEVICE: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let file = rustix::fs::memfd_create("shmtrace", MemfdFlags::CLOEXEC).ok()?;
        let device = rustix::fs::fstat(file).ok()?.st_dev;
        Some((rustix::fs::major(device), rustix::fs::minor(device)))
    })
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
        let served = ["fuse", "fuse.sshfs", "fuseblk", "nfs4"];
        assert!(served.into_iter().all(is_served));
        let local = ["tmpfs", "ext4", "overlay", "fusectl", "nfsd"];
        assert!(!local.into_iter().any(is_served));
    }

    #[test]
    fn what_is_not_mounted_is_not_touched() {
        let process = Process::open(std::process::id()).unwrap();
        assert!(!process.may_block(unnamed_files().unwrap()));
        assert!(process.may_block((0, 1 << 19)));
    }
}
