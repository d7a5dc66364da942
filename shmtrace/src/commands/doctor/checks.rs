//! The checks, from the ground up: kernel, rights, then what tracing really does.

use std::{fs, io, path::Path};

#[cfg(test)]
use crate::limits::Answer;
use crate::{
    hub::HubReader,
    launch,
    limits::{self, Check},
    probes::{self, ProbeError, Probes},
    rights::{self, Role},
};

/// The oldest kernel that has what the probes need.
const OLDEST: (u32, u32) = (5, 10);
/// All of them, in the order in which they are to be read.
pub(super) fn all() -> Vec<Check> {
    let mut checks = vec![
        built_with_probes(),
        kernel(),
        type_information(),
        lockdown(),
    ];
    checks.extend(limits::checks());
    checks.extend(load_and_attach());
    checks.extend([
        least_privilege(),
        copies_of_fds(),
        tracefs(),
        sampling(),
        memory_limit(),
        hubs(),
    ]);
    checks
}

fn built_with_probes() -> Check {
    const NAME: &str = "probes built in";
    if probes::are_built_in() {
        return Check::yes(NAME, format!("shmtrace {}", env!("CARGO_PKG_VERSION")));
    }
    let remedy = "run `cargo xtask setup`, then `cargo xtask build`";
    Check::no(
        NAME,
        "this shmtrace was built without a BPF toolchain",
        remedy,
    )
}

fn kernel() -> Check {
    const NAME: &str = "kernel";
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    match limits::version_of(&release) {
        Some(version) if version < OLDEST => Check::no(
            NAME,
            release,
            format!("boot a kernel from {}.{}", OLDEST.0, OLDEST.1),
        ),
        Some(_) => Check::yes(NAME, release),
        None => Check::limited(
            NAME,
            format!("release {release:?} is no version"),
            "see `uname -r`",
        ),
    }
}

fn type_information() -> Check {
    const NAME: &str = "type information";
    const FILE: &str = "/sys/kernel/btf/vmlinux";
    match fs::metadata(FILE) {
        Ok(metadata) => Check::yes(NAME, format!("{FILE}, {} KiB", metadata.len() / 1024)),
        Err(error) => Check::no(
            NAME,
            format!("{FILE}: {error}"),
            "boot a kernel with CONFIG_DEBUG_INFO_BTF=y, as distributions have from 5.10; in a container, mount /sys",
        ),
    }
}

fn lockdown() -> Check {
    const NAME: &str = "lockdown";
    let state = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    let chosen = state
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map(|(name, _)| name);
    match chosen {
        Some("confidentiality") => Check::no(
            NAME,
            "confidentiality: probes may not read memory",
            "boot with lockdown=integrity, or without lockdown",
        ),
        Some(name) => Check::yes(NAME, name),
        None => Check::yes(NAME, "none"),
    }
}

/// What a watch keeps of its rights once it watches.
fn least_privilege() -> Check {
    const NAME: &str = "least privilege";
    let keeps = rights::in_words(Role::Watch.needs());
    let helper = rights::in_words(Role::Helper { writes: false }.needs());
    let detail = format!("a watch keeps {keeps}, a helper process {helper}");
    // Asks for the mode of this process; what there is no filter for is no valid question.
    match rustix::thread::secure_computing_mode() {
        Ok(_) => Check::yes(NAME, format!("{detail}; both with filtered system calls")),
        Err(error) => Check::limited(
            NAME,
            format!("{detail}; system calls are not filtered: seccomp: {error}"),
            "boot a kernel with CONFIG_SECCOMP_FILTER=y",
        ),
    }
}

/// The proof: everything that a watch does before it watches somebody.
fn load_and_attach() -> Vec<Check> {
    const NAME: &str = "load and attach";
    match Probes::attach(probes::DEFAULT_BUFFER_BYTES, true) {
        Ok(probes) => {
            let signals = limits::signals(probes.see_calls_only());
            drop(probes);
            vec![Check::yes(NAME, "all probes, and detached again"), signals]
        }
        Err(error) => {
            let remedy = match &error {
                ProbeError::NotBuilt => "see above",
                ProbeError::NotPermitted { .. } => "run it with sudo, or with these capabilities",
                ProbeError::Unsupported { remedy, .. } => remedy,
                ProbeError::Failed { .. } => {
                    "please report this, with the output of `RUST_LOG=debug shmtrace doctor`"
                }
            };
            let remedy = remedy.to_owned();
            let detail = format!("{:#}", anyhow::Error::from(error));
            vec![Check::no(NAME, detail, remedy)]
        }
    }
}

fn copies_of_fds() -> Check {
    const NAME: &str = "copies of fds";
    // SAFETY: the call takes plain numbers, and these name nothing.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_getfd, -1, -1, 0) };
    let error = io::Error::last_os_error();
    if result < 0 && error.raw_os_error() == Some(libc::ENOSYS) {
        return Check::limited(
            NAME,
            "no pidfd_getfd: `nudge` does not work",
            "boot a kernel from 5.6",
        );
    }
    Check::yes(NAME, "pidfd_getfd")
}

fn tracefs() -> Check {
    const NAME: &str = "tracefs";
    if Path::new("/sys/kernel/tracing/events/sched").is_dir() {
        return Check::yes(NAME, "/sys/kernel/tracing");
    }
    Check::limited(
        NAME,
        "not mounted: mounted for a moment where sends on closed fds can only be seen by its tracepoints",
        "mount -t tracefs tracefs /sys/kernel/tracing",
    )
}

fn sampling() -> Check {
    const NAME: &str = "sampling";
    match probes::can_sample() {
        Ok(()) => Check::yes(NAME, "perf_event_open, for `profile`"),
        Err(error) => Check::limited(
            NAME,
            format!("perf_event_open: {error}: `profile` works with --off-cpu only"),
            "run it with sudo, outside of a container, or set kernel.perf_event_paranoid to 1 or less",
        ),
    }
}

fn memory_limit() -> Check {
    const NAME: &str = "run's memory limit";
    let ways = launch::ways();
    if let Some(way) = ways.iter().find_map(|way| way.as_ref().ok()) {
        return Check::yes(NAME, format!("`run` can limit by {way}"));
    }
    let why: Vec<&str> = ways
        .iter()
        .filter_map(|way| way.as_ref().err())
        .map(String::as_str)
        .collect();
    Check::limited(
        NAME,
        format!("`run` cannot limit memory: {}", why.join("; ")),
        "run it with sudo, or with `run --memory-max none`",
    )
}

/// Hubs that are there now: the only thing that a program of another version would show.
fn hubs() -> Check {
    const NAME: &str = "hub version";
    let entries = fs::read_dir("/tmp").into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("dodeca-hub-") && name.ends_with(".shm")
    });
    let mut good = 0;
    for path in paths {
        match HubReader::open_path(&path) {
            Ok(_) => good += 1,
            Err(error) => {
                return Check::limited(
                    NAME,
                    error.to_string(),
                    "see `shmtrace inspect` for that file",
                );
            }
        }
    }
    Check::yes(
        NAME,
        format!("reads version 1.x; {good} such hubs in /tmp now"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_no_has_a_remedy() {
        for check in all() {
            assert_eq!(
                check.remedy.is_none(),
                check.answer == Answer::Yes,
                "{check:?}"
            );
        }
    }
}
