//! A stand-in as a test sees it: started, listened to, looked at from outside, and ended without leaving anything.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open};
use serde_json::Value;

use crate::child::{die_with_parent, pid_of, signal};

/// How long a stand-in may take for anything that it was not asked to wait for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running stand-in. Dropping it ends it.
#[derive(Debug)]
pub struct Stage {
    child: Child,
    lines: Receiver<Value>,
    seen: Vec<Value>,
}

/// A plugin of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagePlugin {
    /// Its peer id.
    pub peer: u16,
    /// Its process.
    pub pid: u32,
    /// Its process name.
    pub name: String,
}

impl Stage {
    /// Starts `program host ARGUMENTS`. It dies with the calling thread.
    pub fn start<S: AsRef<std::ffi::OsStr>>(
        program: impl AsRef<Path>,
        arguments: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<Self> {
        let program = program.as_ref();
        let mut command = Command::new(program);
        command
            .arg("host")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        die_with_parent(&mut command, &[]);
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let stdout = child.stdout.take().context("no stdout")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Whoever listened is gone: so may we.
                if serde_json::from_str(&text).is_ok_and(|value| sender.send(value).is_err()) {
                    return;
                }
            }
        });
        Ok(Self {
            child,
            lines,
            seen: Vec::new(),
        })
    }

    /// The host's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The first line of this kind, waiting for it.
    pub fn event(&mut self, kind: &str) -> anyhow::Result<Value> {
        if let Some(line) = self.seen.iter().find(|line| line["event"] == kind) {
            return Ok(line.clone());
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line);
                    if let Some(line) = self.seen.last().filter(|line| line["event"] == kind) {
                        return Ok(line.clone());
                    }
                }
                Err(RecvTimeoutError::Timeout) => bail!("no line {kind:?} within {PATIENCE:?}"),
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("it ended without a line {kind:?}: {:?}", self.seen)
                }
            }
        }
    }

    /// The hub file.
    pub fn hub(&mut self) -> anyhow::Result<PathBuf> {
        let path = self.event("host")?["hub"].as_str().map(PathBuf::from);
        path.context("line without a hub")
    }

    /// The plugins that were started, once all have answered.
    pub fn plugins(&mut self) -> anyhow::Result<Vec<StagePlugin>> {
        self.event("ready")?;
        let plugins = self
            .seen
            .iter()
            .filter(|line| line["event"] == "plugin")
            .map(|line| {
                Some(StagePlugin {
                    peer: u16::try_from(line["peer"].as_u64()?).ok()?,
                    pid: u32::try_from(line["pid"].as_u64()?).ok()?,
                    name: line["name"].as_str()?.to_owned(),
                })
            });
        plugins
            .collect::<Option<_>>()
            .context("a plugin's line is incomplete")
    }

    /// Asks it to end, if it did not yet, and checks that nothing is left of it.
    pub fn end(mut self) -> anyhow::Result<ExitStatus> {
        let pid = self.pid();
        if self.child.try_wait()?.is_none() {
            signal(pid, Signal::TERM)?;
        }
        self.outcome()
    }

    /// Waits for it to end by itself, and checks that nothing is left of it.
    pub fn finish(mut self) -> anyhow::Result<ExitStatus> {
        self.event("done")?;
        self.outcome()
    }

    fn outcome(&mut self) -> anyhow::Result<ExitStatus> {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(start.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        self.seen.extend(self.lines.iter());
        for line in &self.seen {
            if line["event"] == "host" {
                let hub = line["hub"].as_str().context("line without a hub")?;
                ensure!(!Path::new(hub).exists(), "it left its hub {hub}");
            }
            if line["event"] == "plugin" {
                let pid = line["pid"].as_u64().context("line without a pid")?;
                let name = line["name"].as_str().unwrap_or("");
                let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                ensure!(
                    comm.trim().is_empty() || !name.starts_with(comm.trim()),
                    "it left its plugin {name} ({pid})"
                );
            }
        }
        Ok(status)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A test that failed: the plugins die with the host.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Head and tail of a ring in a hub file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingLook {
    /// Entries ever published.
    pub head: u64,
    /// Entries ever taken.
    pub tail: u64,
    /// Entries that fit.
    pub capacity: u64,
}

impl RingLook {
    /// Entries that wait; more than `capacity` in a ring that is broken.
    pub fn len(&self) -> u64 {
        self.head.wrapping_sub(self.tail)
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.head == self.tail
    }
}

/// Reads both rings of a peer: host to peer, then peer to host. The offsets are those of format version 1.0.
pub fn rings(hub: &Path, peer: u16) -> io::Result<(RingLook, RingLook)> {
    let file = File::open(hub)?;
    let word = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at)
            .map(|()| u64::from_ne_bytes(bytes))
    };
    let capacity = word(32)? >> 32;
    let entry = word(40)? + 64 * u64::from(peer);
    let ring = |field: u64| {
        let at = word(entry + field)?;
        Ok::<_, io::Error>(RingLook {
            head: word(at)?,
            tail: word(at + 64)?,
            capacity,
        })
    };
    Ok((ring(32)?, ring(24)?))
}

/// The number of the doorbell in a plugin's process, from its command line.
pub fn doorbell_of(pid: u32) -> io::Result<i32> {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    line.split('\0')
        .find_map(|word| word.strip_prefix("--doorbell-fd=")?.parse().ok())
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "no --doorbell-fd on the command line",
            )
        })
}

/// Whether a token is queued at, and whether one that was sent from is still unread at the far end of, this socket.
pub fn tokens(pid: u32, fd: i32) -> io::Result<(bool, bool)> {
    let process = pidfd_open(pid_of(pid)?, PidfdFlags::empty())?;
    let copy = pidfd_getfd(process, fd, PidfdGetfdFlags::empty())?;
    let queued = rustix::io::ioctl_fionread(&copy)? > 0;
    let mut unread: libc::c_int = 0;
    // SAFETY: TIOCOUTQ (SIOCOUTQ for a socket) stores one int, and `unread` is one.
    if unsafe { libc::ioctl(copy.as_raw_fd(), libc::TIOCOUTQ, &raw mut unread) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((queued, unread > 0))
}
