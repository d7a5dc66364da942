//! A memory limit for a process and everything that it will start, by the first way that works here:
//! a scope of systemd, a cgroup v2 of its own, a cgroup v1 of its own.
//!
//! Whatever the way, the limit counts only if it can be read back from the process's own cgroup.

use std::{
    fmt::{self, Write as _},
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use thiserror::Error;

use super::MemoryMax;
use crate::observe::memory::{self, Hierarchy, Version};

/// How long systemd may take to make a scope.
const SCOPE_TAKES: Duration = Duration::from_secs(3);
/// `busctl` gives up after this, should the bus not answer.
const BUS_TIMEOUT: &str = "--timeout=3";

/// The bus object of systemd itself.
const MANAGER: &str = "/org/freedesktop/systemd1";

/// No limit can be had.
#[derive(Debug, Error)]
#[error(
    "cannot limit the memory of the command to {max}: {}; run it with sudo, or without a limit: `--memory-max none`",
    .tried.join("; ")
)]
pub struct NoLimit {
    max: MemoryMax,
    tried: Vec<String>,
}

/// How a process is limited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// A transient scope of the user's systemd.
    UserScope(String),
    /// A transient scope of the system's systemd.
    SystemScope(String),
    /// A cgroup v2 made for it.
    CgroupTwo(PathBuf),
    /// A cgroup v1 made for it.
    CgroupOne(PathBuf),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UserScope(unit) => write!(f, "systemd user scope {unit}"),
            Self::SystemScope(unit) => write!(f, "systemd scope {unit}"),
            Self::CgroupTwo(folder) => write!(f, "cgroup {}", folder.display()),
            Self::CgroupOne(folder) => write!(f, "cgroup v1 {}", folder.display()),
        }
    }
}

/// A limit in force.
#[derive(Debug)]
pub struct Limited {
    way: Way,
    max: MemoryMax,
    version: Version,
    /// Where the process's cgroup is mounted.
    folder: PathBuf,
}

impl Limited {
    /// How.
    pub fn way(&self) -> &Way {
        &self.way
    }

    /// The limit.
    pub fn max(&self) -> MemoryMax {
        self.max
    }

    /// Processes that the kernel killed for want of memory, once all have ended: at least so many, since systemd removes a
    /// scope and its counter at once. It keeps a scope that failed, though, until it is told to forget it.
    pub fn oom_kills_at_end(&self) -> u64 {
        let counted = self.oom_kills();
        let (bus, unit) = match &self.way {
            Way::UserScope(unit) => ("--user", unit),
            Way::SystemScope(unit) => ("--system", unit),
            Way::CgroupTwo(_) | Way::CgroupOne(_) => return counted.unwrap_or(0),
        };
        let mut result = busctl(bus, "get-property", &unit_object(unit));
        result.args(["org.freedesktop.systemd1.Scope", "Result"]);
        let killed = match answer(bus, result) {
            Ok(said) => said.contains("oom-kill"),
            Err(error) => {
                tracing::debug!("scope {unit} is forgotten: {error}");
                false
            }
        };
        if killed {
            let mut forget = busctl(bus, "call", MANAGER);
            forget.args([
                "org.freedesktop.systemd1.Manager",
                "ResetFailedUnit",
                "s",
                unit,
            ]);
            if let Err(error) = answer(bus, forget) {
                tracing::debug!("scope {unit} stays, as failed: {error}");
            }
        }
        counted.unwrap_or(0).max(u64::from(killed))
    }

    /// Processes that the kernel has killed in this cgroup for want of memory; `None` if the cgroup is gone.
    pub fn oom_kills(&self) -> Option<u64> {
        let file = match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        memory::field(
            &fs::read_to_string(self.folder.join(file)).ok()?,
            "oom_kill",
        )
    }
}

/// A cgroup of our own goes when nobody is in it any more; systemd removes its scopes itself.
impl Drop for Limited {
    fn drop(&mut self) {
        if let Way::CgroupOne(folder) | Way::CgroupTwo(folder) = &self.way
            && let Err(error) = fs::remove_dir(folder)
        {
            tracing::debug!("cgroup {} stays: {error}", folder.display());
        }
    }
}

/// A way that could serve here, or why it cannot; nothing is changed.
pub fn ways() -> Vec<Result<String, String>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let hierarchies = memory::hierarchies(&mounts);
    let mut ways = vec![
        bus_answers("--user").map(|()| "a systemd user scope".to_owned()),
        bus_answers("--system").map(|()| "a systemd scope".to_owned()),
    ];
    for version in [Version::Two, Version::One] {
        ways.push(
            place(&hierarchies, version, std::process::id())
                .map(|place| format!("a {version} below {}", place.folder.display())),
        );
    }
    ways
}

/// Tries to limit a process to so many bytes.
type Attempt = fn(u32, u64) -> Result<Way, String>;

/// Limits a process that has not run yet.
pub(super) fn limit(pid: u32, bytes: u64) -> Result<Limited, NoLimit> {
    let max = MemoryMax::Bytes(bytes);
    let mut tried = Vec::new();
    let user = !rustix::process::geteuid().is_root();
    let attempts: [Attempt; 4] = [
        if user { user_scope } else { system_scope },
        if user { system_scope } else { user_scope },
        |pid, bytes| own_cgroup(pid, bytes, Version::Two),
        |pid, bytes| own_cgroup(pid, bytes, Version::One),
    ];
    for attempt in attempts {
        match attempt(pid, bytes).and_then(|way| in_force(pid, bytes, way)) {
            Ok(limited) => return Ok(limited),
            Err(why) => {
                tracing::debug!("no limit that way: {why}");
                tried.push(why);
            }
        }
    }
    Err(NoLimit { max, tried })
}

fn user_scope(pid: u32, bytes: u64) -> Result<Way, String> {
    scope("--user", pid, bytes).map(Way::UserScope)
}

fn system_scope(pid: u32, bytes: u64) -> Result<Way, String> {
    scope("--system", pid, bytes).map(Way::SystemScope)
}

/// Asks systemd for a scope with this process in it, as `systemd-run --scope -p MemoryMax=` does, and waits until the
/// process is there.
fn scope(bus: &str, pid: u32, bytes: u64) -> Result<String, String> {
    bus_answers(bus)?;
    let unit = format!("shmtrace-run-{pid}.scope");
    let mut command = busctl(bus, "call", MANAGER);
    command.args([
        "org.freedesktop.systemd1.Manager",
        "StartTransientUnit",
        "ssa(sv)a(sa(sv))",
        &unit,
        "fail",
        "4",
    ]);
    command
        .args([
            "Description",
            "s",
            "started by shmtrace run",
            "PIDs",
            "au",
            "1",
        ])
        .arg(pid.to_string());
    command
        .args(["MemoryAccounting", "b", "true", "MemoryMax", "t"])
        .arg(bytes.to_string())
        .arg("0");
    let _job = answer(bus, command)?;
    let deadline = Instant::now() + SCOPE_TAKES;
    while Instant::now() < deadline {
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        if cgroups.lines().any(|line| line.ends_with(&unit)) {
            return Ok(unit);
        }
        thread::sleep(Duration::from_millis(2));
    }
    Err(format!(
        "systemd ({bus}) made no scope within {} s",
        SCOPE_TAKES.as_secs()
    ))
}

/// Whether systemd can be reached over this bus: asked for its version.
fn bus_answers(bus: &str) -> Result<(), String> {
    let system_runs = Path::new("/run/systemd/system").is_dir();
    if !system_runs {
        return Err(format!("systemd ({bus}) does not run here"));
    }
    let mut command = busctl(bus, "call", MANAGER);
    command.args(["org.freedesktop.DBus.Peer", "Ping"]);
    answer(bus, command).map(drop)
}

fn busctl(bus: &str, verb: &str, object: &str) -> Command {
    let mut command = Command::new("busctl");
    command.args([bus, BUS_TIMEOUT, verb, "org.freedesktop.systemd1", object]);
    command.stdin(Stdio::null());
    command
}

/// What it prints.
fn answer(bus: &str, mut command: Command) -> Result<String, String> {
    let output = command
        .output()
        .map_err(|e| format!("systemd ({bus}): cannot run busctl: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "systemd ({bus}): {}",
        said.lines().next().unwrap_or("busctl failed").trim()
    ))
}

/// The bus object of a unit: whatever is no letter or digit is written as its code.
fn unit_object(unit: &str) -> String {
    let mut object = format!("{MANAGER}/unit/");
    for byte in unit.bytes() {
        if byte.is_ascii_alphanumeric() {
            object.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _infallible = write!(object, "_{byte:02x}");
        }
    }
    object
}

/// Where a cgroup of our own can be made.
struct Place {
    folder: PathBuf,
    /// The tightest limit of the levels that the process would leave.
    ceiling: u64,
    /// It must be told to give the memory controller to its children.
    enable: bool,
}

/// The cgroup below which one can be made for the process. In v2 a cgroup that has processes gives no controllers to its
/// children, so it is the nearest one above that does.
fn place(hierarchies: &[Hierarchy], version: Version, pid: u32) -> Result<Place, String> {
    let hierarchy = hierarchies
        .iter()
        .find(|hierarchy| hierarchy.version == version)
        .ok_or_else(|| format!("no {version} hierarchy with memory limits is mounted"))?;
    let cgroups =
        fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(|e| format!("{version}: {e}"))?;
    let own = memory::path_in(version, &cgroups)
        .and_then(|path| hierarchy.folder(&path))
        .ok_or_else(|| format!("{version}: this process's own cgroup is not visible here"))?;
    if version == Version::One {
        return writable(own, version, u64::MAX, false);
    }
    let mut ceiling = u64::MAX;
    for level in own
        .ancestors()
        .take_while(|level| level.starts_with(&hierarchy.mount))
    {
        let has_memory = |file: &str| {
            let words = fs::read_to_string(level.join(file)).unwrap_or_default();
            words.split_ascii_whitespace().any(|word| word == "memory")
        };
        if has_memory("cgroup.subtree_control") {
            return writable(level.to_owned(), version, ceiling, false);
        }
        // Only the root of all has no type, and only it may have processes and give controllers.
        if has_memory("cgroup.controllers") && !level.join("cgroup.type").exists() {
            return writable(level.to_owned(), version, ceiling, true);
        }
        let limit = fs::read_to_string(level.join("memory.max")).ok();
        let limit = limit
            .and_then(|limit| limit.trim().parse().ok())
            .unwrap_or(u64::MAX);
        ceiling = ceiling.min(limit);
    }
    Err(format!(
        "{version}: no cgroup above this process gives the memory controller to its children"
    ))
}

fn writable(
    folder: PathBuf,
    version: Version,
    ceiling: u64,
    enable: bool,
) -> Result<Place, String> {
    match rustix::fs::access(&folder, rustix::fs::Access::WRITE_OK) {
        Ok(()) => Ok(Place {
            folder,
            ceiling,
            enable,
        }),
        Err(error) => Err(format!(
            "{version}: may not make a cgroup in {}: {error}",
            folder.display()
        )),
    }
}

fn own_cgroup(pid: u32, bytes: u64, version: Version) -> Result<Way, String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let place = place(&memory::hierarchies(&mounts), version, pid)?;
    let folder = place.folder.join(format!("shmtrace-run-{pid}"));
    let file = match version {
        Version::One => "memory.limit_in_bytes",
        Version::Two => "memory.max",
    };
    if place.enable {
        fs::write(place.folder.join("cgroup.subtree_control"), "+memory")
            .map_err(|e| format!("{version}: cannot enable the memory controller: {e}"))?;
    }
    let fill = || -> io::Result<()> {
        fs::write(folder.join(file), bytes.min(place.ceiling).to_string())?;
        fs::write(folder.join("cgroup.procs"), pid.to_string())
    };
    remove_left_behind(&place.folder);
    fs::create_dir(&folder)
        .map_err(|e| format!("{version}: cannot make {}: {e}", folder.display()))?;
    if let Err(error) = fill() {
        // Empty as it is, it can go; if not, an empty cgroup does no harm.
        let _empty = fs::remove_dir(&folder);
        return Err(format!(
            "{version}: cannot use {}: {error}",
            folder.display()
        ));
    }
    Ok(match version {
        Version::One => Way::CgroupOne(folder),
        Version::Two => Way::CgroupTwo(folder),
    })
}

/// Removes cgroups of earlier commands whose last process has ended since. A process that is being limited is there
/// before its cgroup is, so none of those is taken for one.
fn remove_left_behind(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix("shmtrace-run-")?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Fails, and should, while somebody is in it.
            let _in_use = fs::remove_dir(entry.path());
        }
    }
}

/// Reads the limit back from where the process is now.
fn in_force(pid: u32, bytes: u64, way: Way) -> Result<Limited, String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let hierarchies = memory::hierarchies(&mounts);
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let found = memory::memory_cgroup(&hierarchies, &cgroups)
        .and_then(|(hierarchy, path)| Some((hierarchy.version, hierarchy.folder(&path)?)));
    let Some((version, folder)) = found else {
        return Err(format!("{way}: its memory controller is not visible here"));
    };
    let file = match version {
        Version::One => "memory.limit_in_bytes",
        Version::Two => "memory.max",
    };
    let limit = fs::read_to_string(folder.join(file))
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    // The kernel rounds to pages.
    if limit.is_none_or(|limit| limit > bytes.next_multiple_of(64 << 10)) {
        return Err(format!("{way}: the limit is not in force"));
    }
    Ok(Limited {
        way,
        max: MemoryMax::Bytes(bytes),
        version,
        folder,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_named_on_the_bus_as_systemd_names_them() {
        assert_eq!(
            unit_object("shmtrace-run-180.scope"),
            "/org/freedesktop/systemd1/unit/shmtrace_2drun_2d180_2escope"
        );
    }
}
