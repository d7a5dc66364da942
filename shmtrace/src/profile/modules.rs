//! Which file an address of a process belongs to. Read while the process lives, so that frames of processes that end
//! before the sampling does can be named, too.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Mappings of one process that are kept; more are not code.
const MAX_MAPPINGS: usize = 16_384;

/// Executable mappings of every process seen.
#[derive(Debug, Default)]
pub struct Modules {
    processes: BTreeMap<u32, Seen>,
}

/// A process.
#[derive(Debug, Default)]
struct Seen {
    name: String,
    /// By first address.
    mappings: BTreeMap<u64, Mapping>,
}

/// An executable mapping.
#[derive(Debug, Clone)]
pub(crate) struct Mapping {
    end: u64,
    offset: u64,
    path: Arc<str>,
}

/// Where an address lies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spot {
    /// The file, as the process names it; `[vdso]`, `//anon` and the like for what is none.
    pub path: Arc<str>,
    /// Offset in it.
    pub offset: u64,
}

impl Modules {
    /// Reads the mappings of these processes, and keeps those of processes that are gone.
    pub fn refresh(&mut self, pids: impl IntoIterator<Item = u32>) {
        for pid in pids {
            let Ok(maps) = fs::read_to_string(format!("/proc/{pid}/maps")) else {
                continue;
            };
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let seen = self.processes.entry(pid).or_default();
            // The last name counts: before exec it is that of the parent.
            name.trim_end().clone_into(&mut seen.name);
            seen.keep(&maps);
        }
    }

    /// The process's name.
    pub fn name(&self, pid: u32) -> Option<&str> {
        self.processes.get(&pid).map(|seen| seen.name.as_str())
    }

    /// Where an address of a process lies; `None` if it is in no code that was seen.
    pub fn find(&self, pid: u32, address: u64) -> Option<Spot> {
        let seen = self.processes.get(&pid)?;
        let (start, mapping) = seen.mappings.range(..=address).next_back()?;
        (address < mapping.end).then(|| Spot {
            path: Arc::clone(&mapping.path),
            offset: (address - start).saturating_add(mapping.offset),
        })
    }

    /// The file as this process can open it: by the sampled process's root while that lives, else by its name.
    pub fn openable(pid: u32, path: &str) -> PathBuf {
        let through = PathBuf::from(format!("/proc/{pid}/root{path}"));
        if through.exists() {
            through
        } else {
            Path::new(path).to_owned()
        }
    }
}

impl Seen {
    /// Adds the executable ones of these lines of `/proc/PID/maps`.
    fn keep(&mut self, maps: &str) {
        let executable = maps.lines().filter_map(parse_line);
        self.mappings.extend(executable.take(MAX_MAPPINGS));
    }
}

/// `start-end r-xp offset device inode path`
pub(crate) fn parse_line(line: &str) -> Option<(u64, Mapping)> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    if words.next()?.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let number = |word: &str| u64::from_str_radix(word, 16).ok();
    let offset = number(words.next()?)?;
    let path = words.nth(2).unwrap_or_default().trim_start();
    let path = if path.is_empty() { "//anon" } else { path };
    Some((
        number(start)?,
        Mapping {
            end: number(end)?,
            offset,
            path: path.into(),
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_found_by_address() {
        let (start, mapping) =
            parse_line("5581a000-5581c000 r-xp 00003000 fe:01 12                /usr/bin/a b")
                .unwrap();
        assert_eq!(
            (start, mapping.end, mapping.offset),
            (0x5581_a000, 0x5581_c000, 0x3000)
        );
        assert_eq!(&*mapping.path, "/usr/bin/a b");
        assert!(parse_line("5581a000-5581c000 r--p 00003000 fe:01 12 /usr/bin/a").is_none());
        assert!(
            parse_line("7f-8f r-xp 0 00:00 0 ").is_some_and(|(_, anon)| &*anon.path == "//anon")
        );
        assert!(parse_line("rubbish").is_none());
    }

    #[test]
    fn of_very_many_mappings_the_first_are_kept() {
        use std::fmt::Write as _;

        let mut maps = String::new();
        for at in 1..=MAX_MAPPINGS + 1 {
            let start = at << 13;
            writeln!(maps, "{start:x}-{:x} r--p 0 fe:01 12 /data", start + 4096).unwrap();
            writeln!(
                maps,
                "{:x}-{:x} r-xp 0 fe:01 13 /code",
                start + 4096,
                start + 8192
            )
            .unwrap();
        }
        let mut modules = Modules::default();
        modules.processes.entry(1).or_default().keep(&maps);
        let in_code = |at: usize| modules.find(1, (at as u64) << 13 | 4096).is_some();
        assert!(in_code(1) && in_code(MAX_MAPPINGS) && !in_code(MAX_MAPPINGS + 1));
    }

    #[test]
    fn this_function_is_in_this_program() {
        let mut modules = Modules::default();
        let pid = std::process::id();
        modules.refresh([pid]);
        let here = this_function_is_in_this_program as fn() as usize as u64;
        let spot = modules.find(pid, here).unwrap();
        assert_eq!(Path::new(&*spot.path), std::env::current_exe().unwrap());
        assert_eq!(modules.find(pid, 1), None);
        assert_eq!(modules.find(u32::MAX, here), None);
        assert!(modules.name(pid).is_some());
    }
}
