//! Starting `shmtrace` and the processes that it is tried on.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, ChildStdout, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use shmtrace::teardown::Tree;

/// `shmtrace` with these arguments, without settings from the environment.
pub(crate) fn shmtrace(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shmtrace"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SHMTRACE_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub(crate) fn run(args: &[&str]) -> Ran {
    Ran::from(shmtrace(args).output().unwrap())
}

/// What a run left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// A program of another package of the workspace, which `cargo xtask test` builds beside this one.
pub(crate) fn sibling(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_shmtrace")).with_file_name(name);
    assert!(
        path.exists(),
        "{} is not built: run `cargo build --workspace`",
        path.display()
    );
    path
}

/// A process that ends with the test, and its output line by line.
pub(crate) struct Target {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Target {
    /// Starts it.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// Starts a shell script.
    pub(crate) fn script(script: &str) -> Self {
        Self::start(Command::new("bash").args(["-c", script]))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The pid as an argument.
    pub(crate) fn arg(&self) -> String {
        self.child.id().to_string()
    }

    /// The next line of its output.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Its exit code, once it has ended.
    pub(crate) fn code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Whatever a script has started, too.
        if let Ok(mut tree) = Tree::gather(&[self.child.id()]) {
            let _left = tree.end(Signal::KILL, Duration::ZERO, |_| {});
        }
        let _gone_already = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Whether a process with this pid exists that is no zombie.
pub(crate) fn exists(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .starts_with(" Z")
    })
}

/// Waits until `condition` holds; false after ten seconds.
pub(crate) fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}
