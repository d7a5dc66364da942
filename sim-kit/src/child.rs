//! Starting a plugin as `ddc` does, and ending it for certain.

use std::ffi::OsString;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// Names of `ddc`'s own plugins, in the order in which peers get them.
pub const PLUGIN_NAMES: [&str; 32] = [
    "css",
    "html",
    "image",
    "search",
    "code-exec",
    "markdown",
    "http",
    "linkcheck",
    "webp",
    "jxl",
    "svgo",
    "sass",
    "js",
    "fonts",
    "minify",
    "tui",
    "pagefind",
    "html-diff",
    "gingembre",
    "dialoguer",
    "term",
    "vite",
    "data",
    "feed",
    "sitemap",
    "redirect",
    "math",
    "mermaid",
    "csv",
    "pdf",
    "audio",
    "video",
];

/// The process name of the plugin of peer `index`.
pub fn plugin_name(index: usize) -> String {
    format!("dodeca-mod-{}", PLUGIN_NAMES[index % PLUGIN_NAMES.len()])
}

/// How a plugin learns its hub, its peer id and its doorbell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handover {
    /// `--hub-path=`, `--peer-id=` and `--doorbell-fd=` on the command line, as `ddc` does.
    Arguments,
    /// The same in the environment, where no command line shows them.
    Environment,
}

/// A plugin about to be started.
#[derive(Debug)]
pub struct Plugin<'a> {
    /// The program and its leading arguments.
    pub command: &'a [OsString],
    /// argv\[0\] and process name.
    pub name: &'a str,
    /// Its hub.
    pub hub: &'a Path,
    /// Its peer id.
    pub peer: u16,
    /// Its end of the doorbell.
    pub doorbell: RawFd,
    /// How it is told.
    pub handover: Handover,
}

impl Plugin<'_> {
    /// Starts it. It dies with the thread that calls this: call it from the one that lives longest.
    pub fn spawn(&self) -> io::Result<Child> {
        let (program, leading) = self.command.split_first().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "plugin command is empty: name a program",
            )
        })?;
        let mut command = Command::new(program);
        command.arg0(self.name).args(leading).stdin(Stdio::null());
        let (hub, peer, doorbell) = (self.hub.display(), self.peer, self.doorbell);
        match self.handover {
            Handover::Arguments => command
                .arg(format!("--hub-path={hub}"))
                .arg(format!("--peer-id={peer}"))
                .arg(format!("--doorbell-fd={doorbell}")),
            Handover::Environment => command
                .env("SIM_HUB_PATH", self.hub)
                .env("SIM_PEER_ID", peer.to_string())
                .env("SIM_DOORBELL_FD", doorbell.to_string()),
        };
        die_with_parent(&mut command, &[doorbell]);
        command.spawn()
    }
}

/// Makes the child die with the thread that starts it, and inherit `fds` even if they are close-on-exec here.
pub fn die_with_parent(command: &mut Command, fds: &[RawFd]) {
    let parent = std::process::id();
    let fds = fds.to_vec();
    // SAFETY: between fork and exec the closure makes system calls only (prctl, getppid, fcntl): it neither allocates
    // nor takes a lock, which is what a child of a multi-threaded process must keep to. `fds` was allocated before.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above: then no signal will ever come.
            if rustix::process::getppid()
                .is_none_or(|ppid| ppid.as_raw_nonzero().get() as u32 != parent)
            {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            for &fd in &fds {
                // A bad fd must fail here, with a name, and not in the plugin.
                if libc::fcntl(fd, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

/// Names the calling process as `ps` and the kernel's records show it (the first 15 bytes of it).
pub fn name_process(name: &str) {
    let name: Vec<u8> = name.bytes().filter(|byte| *byte != 0).take(15).collect();
    if let Ok(name) = std::ffi::CString::new(name) {
        // Only a name: a kernel that refuses it changes nothing that matters.
        let _ = rustix::thread::set_name(&name);
    }
}

/// A pid as rustix wants it; 0 and what does not fit are no pids.
pub fn pid_of(pid: u32) -> io::Result<Pid> {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{pid} is not a process id"),
            )
        })
}

/// Sends a signal to a process that we started.
pub fn signal(pid: u32, signal: Signal) -> io::Result<()> {
    rustix::process::kill_process(pid_of(pid)?, signal).map_err(Into::into)
}

/// Ends the children: asks all of them first, kills what is left after `patience`, and reaps them.
pub fn end_all(children: &mut [Child], patience: Duration) {
    for child in &*children {
        // A stopped child could not answer; one that is gone needs nothing.
        let _ = signal(child.id(), Signal::TERM).and_then(|()| signal(child.id(), Signal::CONT));
    }
    let start = Instant::now();
    for child in children {
        while matches!(child.try_wait(), Ok(None)) {
            if start.elapsed() >= patience {
                let _ = child.kill();
                let _ = child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
