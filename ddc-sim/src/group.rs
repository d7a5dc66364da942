//! Control groups, v1 and v2: a limit of processor time or memory for a tree.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// A control group of our own, in the hierarchy (v1) or the tree (v2) that has the controller.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
    parent: PathBuf,
    unified: bool,
}

impl Group {
    /// Makes one below the group that we are in.
    pub(crate) fn create(controller: &str, purpose: &str) -> anyhow::Result<Self> {
        let own =
            fs::read_to_string("/proc/self/cgroup").context("asking for our control group")?;
        let name = format!("ddc-sim-{}-{purpose}", std::process::id());
        let root = PathBuf::from("/sys/fs/cgroup");
        for entry in own.lines() {
            let mut fields = entry.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
                continue;
            };
            let unified = controllers.is_empty();
            if !unified && !controllers.split(',').any(|each| each == controller) {
                continue;
            }
            let mount = if unified {
                root.clone()
            } else {
                root.join(controller)
            };
            let inside = mount.join(path.trim_start_matches('/'));
            // In a container the path may be one that only the outside knows. In the unified tree a group with
            // processes cannot hand controllers on, and the nearest one that does is further up.
            let parents = inside
                .ancestors()
                .take_while(|parent| parent.starts_with(&mount))
                .filter(|dir| dir.is_dir());
            let found = parents.map(PathBuf::from).find_map(|parent| {
                let path = parent.join(&name);
                make_group(&parent, &path, controller, unified).then_some((parent, path))
            });
            if let Some((parent, path)) = found {
                return Ok(Self {
                    path,
                    parent,
                    unified,
                });
            }
        }
        bail!(
            "no control group can be made with the controller {controller}: root is needed, and a controller in use"
        )
    }

    fn write(&self, file: &str, value: &str) -> anyhow::Result<()> {
        let path = self.path.join(file);
        fs::write(&path, value).with_context(|| format!("writing {value:?} to {}", path.display()))
    }

    /// So much processor time in each period, in microseconds.
    pub(crate) fn limit_cpu(&self, quota_us: u64, period_us: u64) -> anyhow::Result<()> {
        if self.unified {
            return self.write("cpu.max", &format!("{quota_us} {period_us}"));
        }
        self.write("cpu.cfs_period_us", &period_us.to_string())?;
        self.write("cpu.cfs_quota_us", &quota_us.to_string())
    }

    /// So many bytes at most.
    pub(crate) fn limit_memory(&self, bytes: u64) -> anyhow::Result<()> {
        let file = if self.unified {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        self.write(file, &bytes.to_string())
    }

    /// Moves a process into it.
    pub(crate) fn add(&self, pid: u32) -> anyhow::Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Whoever is still inside goes back to where we are.
        for pid in fs::read_to_string(self.path.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
        {
            let _ = fs::write(self.parent.join("cgroup.procs"), pid);
        }
        if let Err(error) = remove_group(&self.path) {
            eprintln!(
                "control group {} is left behind: {error}",
                self.path.display()
            );
        }
    }
}

/// Makes the folder; false, with nothing left, where the controller does not come with it.
fn make_group(parent: &Path, path: &Path, controller: &str, unified: bool) -> bool {
    if fs::create_dir(path).is_err() {
        return false;
    }
    let probe = path.join(match (controller, unified) {
        ("cpu", true) => "cpu.max",
        ("cpu", false) => "cpu.cfs_quota_us",
        (_, true) => "memory.max",
        (_, false) => "memory.limit_in_bytes",
    });
    if unified && !probe.exists() {
        // Refused where the parent has processes of its own.
        let _ = fs::write(
            parent.join("cgroup.subtree_control"),
            format!("+{controller}"),
        );
    }
    let made = probe.exists();
    if !made {
        let _ = fs::remove_dir(path);
    }
    made
}

/// A group stays busy for a moment after its last process ended.
fn remove_group(path: &Path) -> io::Result<()> {
    let mut result = fs::remove_dir(path);
    for _ in 0..100 {
        if result.is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
        result = fs::remove_dir(path);
    }
    result
}
