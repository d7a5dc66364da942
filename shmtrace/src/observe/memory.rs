//! Memory limits: the cgroup, v2 or v1, that holds the tightest limit above a process.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
};

use shmtrace_engine::input::MemoryObservation;

use super::mono_now;

/// Limits that are none: v1 shows the greatest page-aligned number.
const UNLIMITED: u64 = 1 << 62;
/// How deep a cgroup can lie.
const MAX_DEPTH: usize = 64;

/// Which hierarchy the memory controller is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    One,
    Two,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One => "cgroup v1",
            Self::Two => "cgroup v2",
        })
    }
}

/// A mounted hierarchy that may have the memory controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) version: Version,
    /// The cgroup that is mounted, usually `/`.
    root: String,
    pub(crate) mount: PathBuf,
}

impl Hierarchy {
    /// The folder of a cgroup; `None` if it lies outside of what is mounted.
    pub(crate) fn folder(&self, path: &str) -> Option<PathBuf> {
        let below = if self.root == "/" {
            path
        } else {
            path.strip_prefix(&self.root)?
        };
        Some(self.mount.join(below.trim_start_matches('/')))
    }
}

/// In how many looks a process is asked for its cgroup before it is taken to stay there: a new one may be put into another
/// after it was started.
const SETTLES: u32 = 3;
/// And in one of so many looks later on.
const SELDOM: u32 = 10;

/// The cgroups of processes, which hardly ever change.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    of: BTreeMap<u32, Member>,
}

/// Where a process is.
#[derive(Debug, Default)]
struct Member {
    /// Version and path, if it has a cgroup that matters.
    cgroup: Option<(Version, String)>,
    looks: u32,
}

impl Cgroups {
    /// See [`Observer::memory`](super::Observer::memory).
    pub(super) fn observe(&mut self, pids: &[u32]) -> Vec<MemoryObservation> {
        let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else {
            return Vec::new();
        };
        let hierarchies = hierarchies(&mounts);
        let now: BTreeSet<u32> = pids.iter().copied().collect();
        self.of.retain(|pid, _| now.contains(pid));
        for pid in now {
            let member = self.of.entry(pid).or_default();
            if member.looks < SETTLES || member.looks.is_multiple_of(SELDOM) {
                let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"));
                let cgroups = cgroups.unwrap_or_default();
                let found = memory_cgroup(&hierarchies, &cgroups);
                member.cgroup = found.map(|(hierarchy, path)| (hierarchy.version, path));
            }
            member.looks = member.looks.wrapping_add(1);
        }
        let cgroups: BTreeSet<&(Version, String)> = self
            .of
            .values()
            .filter_map(|member| member.cgroup.as_ref())
            .collect();
        let mut found: BTreeMap<String, MemoryObservation> = BTreeMap::new();
        for (version, path) in cgroups {
            let hierarchy = hierarchies
                .iter()
                .find(|hierarchy| hierarchy.version == *version);
            if let Some(observation) = hierarchy.and_then(|hierarchy| tightest(hierarchy, path)) {
                found
                    .entry(observation.cgroup.clone())
                    .or_insert(observation);
            }
        }
        found.into_values().collect()
    }
}

/// Lines of mountinfo: `id parent major:minor root mount options [tags] - type source options`.
pub(crate) fn hierarchies(mounts: &str) -> Vec<Hierarchy> {
    mounts
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut before = before.split(' ').skip(3);
            let (root, mount) = (before.next()?, before.next()?);
            let mut after = after.split(' ');
            let kind = after.next()?;
            let options = after.nth(1).unwrap_or_default();
            let version = match kind {
                "cgroup2" => Version::Two,
                "cgroup" if options.split(',').any(|option| option == "memory") => Version::One,
                _ => return None,
            };
            Some(Hierarchy {
                version,
                root: root.to_owned(),
                mount: PathBuf::from(mount),
            })
        })
        .collect()
}

/// The process's cgroup in the hierarchy that has the memory controller: v1 if it is mounted there, else v2.
pub(crate) fn memory_cgroup<'a>(
    hierarchies: &'a [Hierarchy],
    cgroups: &str,
) -> Option<(&'a Hierarchy, String)> {
    [Version::One, Version::Two]
        .into_iter()
        .find_map(|version| {
            let hierarchy = hierarchies
                .iter()
                .find(|hierarchy| hierarchy.version == version)?;
            Some((hierarchy, path_in(version, cgroups)?))
        })
}

/// The process's cgroup in the hierarchy of this version, if that may have the memory controller.
pub(crate) fn path_in(version: Version, cgroups: &str) -> Option<String> {
    cgroups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let right = match version {
            Version::One => controllers
                .split(',')
                .any(|controller| controller == "memory"),
            Version::Two => number == "0" && controllers.is_empty(),
        };
        right.then(|| path.to_owned())
    })
}

/// The limit closest to its use from the cgroup up to the mounted root; the cgroup itself if there is none.
fn tightest(hierarchy: &Hierarchy, path: &str) -> Option<MemoryObservation> {
    let own = hierarchy.folder(path)?;
    let levels = own
        .ancestors()
        .take_while(|level| level.starts_with(&hierarchy.mount))
        .take(MAX_DEPTH);
    let mut best: Option<MemoryObservation> = None;
    let mut own_kills = 0;
    for level in levels {
        let Some(mut here) = read(hierarchy, level) else {
            continue;
        };
        if level == own {
            own_kills = here.oom_kills;
        } else if hierarchy.version == Version::One {
            // v1 counts a kill where the victim was, not where the limit is.
            here.oom_kills += own_kills;
        }
        let tighter = match (&best, here.max) {
            (None, _) => true,
            (Some(best), Some(max)) => best.max.is_none_or(|limit| max < limit),
            (Some(_), None) => false,
        };
        if tighter {
            best = Some(here);
        }
    }
    best
}

fn read(hierarchy: &Hierarchy, level: &Path) -> Option<MemoryObservation> {
    let (current, max, events) = match hierarchy.version {
        Version::One => (
            "memory.usage_in_bytes",
            "memory.limit_in_bytes",
            "memory.oom_control",
        ),
        Version::Two => ("memory.current", "memory.max", "memory.events"),
    };
    let text = |name: &str| fs::read_to_string(level.join(name)).ok();
    let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
    let events = text(events).unwrap_or_default();
    let limit_hits = match hierarchy.version {
        Version::One => number("memory.failcnt").unwrap_or(0),
        Version::Two => field(&events, "max").unwrap_or(0),
    };
    // "max" is no number: no limit.
    let limit = number(max).filter(|limit| *limit < UNLIMITED);
    let below = level.strip_prefix(&hierarchy.mount).ok()?;
    Some(MemoryObservation {
        at: mono_now(),
        cgroup: format!(
            "{}/{}",
            hierarchy.root.trim_end_matches('/'),
            below.display()
        ),
        current: number(current)?,
        max: limit,
        oom_kills: field(&events, "oom_kill").unwrap_or(0),
        limit_hits,
    })
}

/// The number behind a word of a file of `word number` lines.
pub(crate) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        line.strip_prefix(name)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "30 25 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        31 25 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
        32 25 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_memory_controller_is_looked_for_in_v1_first() {
        let hierarchies = hierarchies(HYBRID);
        assert_eq!(hierarchies.len(), 2);
        let (hierarchy, path) = memory_cgroup(&hierarchies, "4:memory:/a/b\n0::/u\n").unwrap();
        assert_eq!((hierarchy.version, path.as_str()), (Version::One, "/a/b"));
        let (hierarchy, path) = memory_cgroup(&hierarchies, "3:cpu:/c\n0::/u\n").unwrap();
        assert_eq!((hierarchy.version, path.as_str()), (Version::Two, "/u"));
        assert_eq!(memory_cgroup(&hierarchies, "garbage"), None);
    }

    /// A folder that looks like a hierarchy: `(path, file, content)`.
    fn hierarchy(version: Version, files: &[(&str, &str, &str)]) -> (tempfile::TempDir, Hierarchy) {
        let folder = tempfile::tempdir().unwrap();
        for (path, file, content) in files {
            fs::create_dir_all(folder.path().join(path)).unwrap();
            fs::write(folder.path().join(path).join(file), content).unwrap();
        }
        let mount = folder.path().to_owned();
        (
            folder,
            Hierarchy {
                version,
                root: "/".into(),
                mount,
            },
        )
    }

    #[test]
    fn the_tightest_limit_above_is_reported() {
        let (_folder, hierarchy) = hierarchy(
            Version::Two,
            &[
                ("a/b", "memory.current", "100\n"),
                ("a/b", "memory.max", "max\n"),
                ("a/b", "memory.events", "low 0\nmax 0\noom 0\noom_kill 0\n"),
                ("a", "memory.current", "4000\n"),
                ("a", "memory.max", "4096\n"),
                (
                    "a",
                    "memory.events",
                    "low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n",
                ),
            ],
        );
        let seen = tightest(&hierarchy, "/a/b").unwrap();
        assert_eq!(
            (seen.cgroup.as_str(), seen.current, seen.max),
            ("/a", 4000, Some(4096))
        );
        assert_eq!((seen.limit_hits, seen.oom_kills), (7, 1));
    }

    #[test]
    fn limits_far_above_are_not_seen() {
        for (depth, seen) in [(MAX_DEPTH - 1, Some(4096)), (MAX_DEPTH, None)] {
            let below = "b/".repeat(depth);
            let deepest = format!("a/{below}");
            let (_folder, hierarchy) = hierarchy(
                Version::Two,
                &[
                    (&deepest, "memory.current", "100\n"),
                    (&deepest, "memory.max", "max\n"),
                    ("a", "memory.current", "4000\n"),
                    ("a", "memory.max", "4096\n"),
                ],
            );
            let path = format!("/{}", deepest.trim_end_matches('/'));
            assert_eq!(tightest(&hierarchy, &path).unwrap().max, seen, "{depth}");
        }
    }

    #[test]
    fn v1_knows_no_limit_as_a_huge_one() {
        let (_folder, hierarchy) = hierarchy(
            Version::One,
            &[
                ("x", "memory.usage_in_bytes", "5\n"),
                ("x", "memory.limit_in_bytes", "9223372036854771712\n"),
                ("x", "memory.failcnt", "3\n"),
                (
                    "x",
                    "memory.oom_control",
                    "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
                ),
            ],
        );
        let seen = tightest(&hierarchy, "/x").unwrap();
        assert_eq!(
            (seen.current, seen.max, seen.limit_hits, seen.oom_kills),
            (5, None, 3, 2)
        );
        assert_eq!(tightest(&hierarchy, "/y"), None);
    }

    #[test]
    fn this_process_is_in_some_memory_cgroup_or_none_is_mounted() {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut cgroups = Cgroups::default();
        let pid = std::process::id();
        let observations = cgroups.observe(&[pid]);
        assert!(observations.len() <= 1);
        // Also while it is not asked again.
        let places = |seen: &[MemoryObservation]| -> Vec<String> {
            seen.iter().map(|seen| seen.cgroup.clone()).collect()
        };
        for _ in 0..SELDOM {
            assert_eq!(places(&cgroups.observe(&[pid])), places(&observations));
        }
        assert_eq!(cgroups.observe(&[]), []);
        if hierarchies(&mounts)
            .iter()
            .any(|hierarchy| hierarchy.version == Version::One)
        {
            assert_eq!(observations.len(), 1);
        }
    }
}
