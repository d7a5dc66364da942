//! What this kernel and these rights do not offer to a watch, each with its remedy.
//!
//! A watch says it in its header, `doctor` beside everything else that it looks at. All of these looks are cheap, and
//! none of them changes anything.

use std::{fs, io, path::Path};

use rustix::thread::CapabilitySet;
use serde::Serialize;

use crate::{
    exit::Refusal,
    observe::memory,
    process::{self, Process},
    rights,
    sock::DiagSocket,
};

/// Inode numbers of the initial namespaces, fixed in the kernel's `proc_ns.h`.
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Capabilities with what they are for; found out by leaving each of them out.
const CAPABILITIES: [(CapabilitySet, &str); 6] = [
    (CapabilitySet::BPF, "loading the probes"),
    (CapabilitySet::PERFMON, "attaching the probes"),
    (
        CapabilitySet::SYS_PTRACE,
        "looking into processes of other users",
    ),
    (
        CapabilitySet::DAC_READ_SEARCH,
        "listing what processes of other users have open",
    ),
    (
        CapabilitySet::CHECKPOINT_RESTORE,
        "opening hubs whose name is gone or was replaced",
    ),
    (
        CapabilitySet::SYS_ADMIN,
        "kernel stacks, and doorbells of other network namespaces",
    ),
];

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// All is well.
    Yes,
    /// Tracing works without it; something else does not.
    Limited,
    /// Tracing does not work.
    No,
}

/// One check and its outcome.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// Whether it is as it should be.
    pub answer: Answer,
    /// What was found.
    pub detail: String,
    /// What to do; only if the answer is not yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    /// It is as it should be.
    pub fn yes(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            answer: Answer::Yes,
            detail: detail.into(),
            remedy: None,
        }
    }

    /// Something does not work without it.
    pub fn limited(
        name: &'static str,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            name,
            answer: Answer::Limited,
            detail: detail.into(),
            remedy: Some(remedy.into()),
        }
    }

    /// What is lacking and what to do about it, in one line.
    pub fn in_words(&self) -> Option<String> {
        let remedy = self.remedy.as_ref()?;
        Some(format!("{}: {}; remedy: {remedy}", self.name, self.detail))
    }

    /// Tracing does not work without it.
    pub fn no(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name,
            answer: Answer::No,
            detail: detail.into(),
            remedy: Some(remedy.into()),
        }
    }
}

/// Everything that a watch can lack and go on.
pub fn checks() -> Vec<Check> {
    vec![
        capabilities(),
        pid_namespace(),
        own_process(),
        doorbell_queues(),
        mapped_files(),
        memory_limits(),
    ]
}

/// Where signals are seen; `at_calls` = not at their sockets.
pub fn signals(at_calls: bool) -> Check {
    const NAME: &str = "signals";
    if at_calls {
        return Check::limited(
            NAME,
            "seen at the ends of 64-bit system calls: doorbells that are rung or emptied through io_uring or by 32-bit \
             programs leave no record, so the cause of what is found there may be unknown",
            "boot a kernel from 6.3, and run it with sudo",
        );
    }
    Check::yes(NAME, "seen at their sockets, whichever call it is")
}

/// The version of the running kernel.
pub fn kernel_version() -> Option<(u32, u32)> {
    version_of(&rustix::system::uname().release().to_string_lossy())
}

/// The first two numbers of a release such as `6.1.0-18-amd64`.
pub fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn capabilities() -> Check {
    const NAME: &str = "rights";
    let missing: Vec<String> = CAPABILITIES
        .iter()
        .filter(|(one, _)| !rights::missing(*one).is_empty())
        .map(|(one, what)| format!("{} ({what})", rights::in_words(*one)))
        .collect();
    let who = if rustix::process::geteuid().is_root() {
        "root"
    } else {
        "not root"
    };
    if missing.is_empty() {
        return Check::yes(NAME, who);
    }
    let detail = format!("{who}, without {}", missing.join(", "));
    if rights::missing(rights::TO_ATTACH | rights::TO_LOOK).is_empty() {
        return Check::limited(NAME, detail, "run it with sudo for all of that");
    }
    let remedy = if who == "root" {
        "this root lacks rights, as in a container: start that with --privileged, or run shmtrace outside of it"
    } else {
        "run it with sudo, or with these capabilities"
    };
    Check::no(NAME, detail, remedy)
}

/// The probes see the pids of the initial namespace, whatever the namespace of this process.
fn pid_namespace() -> Check {
    const NAME: &str = "pid namespace";
    const REMEDY: &str = "run shmtrace on the host, or in a container with --pid=host";
    let own = match fs::read_link("/proc/self/ns/pid") {
        Ok(own) => own,
        Err(error) => {
            return Check::no(NAME, format!("/proc/self/ns/pid: {error}"), "mount /proc");
        }
    };
    if own == Path::new(INITIAL_PID_NAMESPACE) {
        return Check::yes(NAME, "the initial one");
    }
    // What `/proc` shows is what is traced; it may be that of the host.
    if process::shows_kernel_threads() {
        return Check::limited(
            NAME,
            format!(
                "{} is not the initial one, which /proc shows: `run` does not work",
                own.display()
            ),
            REMEDY,
        );
    }
    Check::no(
        NAME,
        format!(
            "{} is not the initial one: the probes see other pids than this process",
            own.display()
        ),
        REMEDY,
    )
}

/// Refuses to trace where the probes would wait for pids that no process has: that would be blind, and look healthy.
/// `children` = processes that this one starts are to be traced.
pub fn require_pids_of_the_kernel(children: bool) -> Result<(), Refusal> {
    let check = pid_namespace();
    match (check.answer, check.remedy) {
        (Answer::No, Some(remedy)) => {
            let why = format!(
                "cannot trace here: {}: {}; {remedy}",
                check.name, check.detail
            );
            Err(Refusal::not_permitted(why))
        }
        (Answer::Limited, Some(remedy)) if children => Err(Refusal::not_permitted(format!(
            "{}; {remedy}",
            check.detail
        ))),
        _ => Ok(()),
    }
}

/// Threads, their states and run counts are what a verdict rests on.
fn own_process() -> Check {
    const NAME: &str = "/proc";
    let process = match Process::open(std::process::id()) {
        Ok(process) => process,
        Err(error) => return Check::no(NAME, format!("/proc/self: {error}"), "mount /proc"),
    };
    let tids = process.tids().unwrap_or_default();
    let counted = tids
        .first()
        .is_some_and(|tid| process.runs(*tid, &mut Vec::new()).is_some());
    if !counted {
        return Check::no(
            NAME,
            "no run counts in /proc/PID/task/TID/schedstat",
            "boot a kernel with CONFIG_SCHED_INFO=y, as all distributions have",
        );
    }
    let hidden = fs::read_to_string("/proc/self/mountinfo").is_ok_and(|mounts| {
        mounts
            .lines()
            .any(|line| line.contains(" /proc ") && line.contains("hidepid="))
    });
    if hidden && !rustix::process::geteuid().is_root() {
        return Check::limited(
            NAME,
            "hidepid: other users' processes are hidden",
            "run it with sudo",
        );
    }
    match fs::read_to_string("/proc/self/syscall") {
        Ok(_) => Check::yes(NAME, "states, system calls and run counts of threads"),
        Err(error) => Check::no(
            NAME,
            format!("/proc/PID/syscall: {error}"),
            "run it with sudo; if that does not help, boot a kernel with CONFIG_HAVE_ARCH_TRACEHOOK=y",
        ),
    }
}

fn doorbell_queues() -> Check {
    const NAME: &str = "doorbell queues";
    match DiagSocket::open() {
        Ok(_) => Check::yes(NAME, "unix_diag"),
        Err(error) => Check::limited(
            NAME,
            format!("no unix_diag ({error}): queues are read through copied fds, which is slower"),
            "modprobe unix_diag",
        ),
    }
}

fn mapped_files() -> Check {
    const NAME: &str = "mapped files";
    let first =
        fs::read_dir("/proc/self/map_files").and_then(|mut entries| entries.next().transpose());
    let opened = first.and_then(|entry| match entry {
        Some(entry) => fs::File::open(entry.path()).map(drop),
        None => Err(io::ErrorKind::NotFound.into()),
    });
    match opened {
        Ok(()) => Check::yes(NAME, "/proc/PID/map_files"),
        Err(error) => Check::limited(
            NAME,
            format!("/proc/PID/map_files: {error}: a hub whose name is gone cannot be read"),
            "run it with sudo",
        ),
    }
}

/// Without it a hang for want of memory cannot be told from another.
fn memory_limits() -> Check {
    const NAME: &str = "memory limits";
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let hierarchies = memory::hierarchies(&mounts);
    match hierarchies.first() {
        Some(hierarchy) => Check::yes(
            NAME,
            format!("{} at {}", hierarchy.version, hierarchy.mount.display()),
        ),
        None => Check::limited(
            NAME,
            "no cgroup hierarchy with memory limits is mounted: `memory-limit` is not found",
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_kernels_write_them() {
        assert_eq!(version_of("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version_of("5.10.0"), Some((5, 10)));
        assert_eq!(version_of("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version_of("unknown"), None);
    }

    #[test]
    fn what_is_lacking_comes_with_its_remedy() {
        let signals = [true, false].map(signals);
        assert_eq!(
            signals.each_ref().map(|check| check.answer),
            [Answer::Limited, Answer::Yes]
        );
        for check in checks().into_iter().chain(signals) {
            let lacking = check.answer != Answer::Yes;
            assert_eq!(check.remedy.is_some(), lacking, "{check:?}");
            assert_eq!(check.in_words().is_some(), lacking, "{check:?}");
        }
    }
}
