//! The program itself, watching.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use serde_json::Value;

/// One at a time: each saturates the machine, and all of them together would only show that records can be lost.
pub fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A running `shmtrace ... --format json`; killed when dropped.
pub struct Watch {
    child: Child,
    lines: Receiver<Value>,
    /// Every line so far.
    pub seen: Vec<Value>,
}

impl Watch {
    /// Starts `shmtrace --pid-tree PID --format json ARGUMENTS` and waits until it traces.
    pub fn start(pid: u32, arguments: &[&str]) -> Self {
        let mut watch = Self::spawn(&[&["--pid-tree", &pid.to_string()], arguments].concat());
        watch.wait_for(Duration::from_secs(20), |line| line["type"] == "header");
        watch
    }

    /// Starts `shmtrace --format json ARGUMENTS`.
    pub fn spawn(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_shmtrace"))
            .args(arguments)
            .args(["--format", "json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            lines,
            seen: Vec::new(),
        }
    }

    /// Waits for a line; fails with all that was seen when it does not come in time.
    pub fn wait_for(&mut self, timeout: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + timeout;
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if wanted(&line) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("not within {timeout:?}: {:#?}", self.seen)
                }
                Err(RecvTimeoutError::Disconnected) => panic!("it ended before: {:#?}", self.seen),
            }
        }
    }

    /// Waits for a finding in this state.
    pub fn finding(&mut self, timeout: Duration, state: &str) -> Value {
        self.wait_for(timeout, |line| {
            line["type"] == "finding" && line["state"] == state
        })
    }

    /// Tells it to stop and waits for its end; the summary is the last line seen.
    pub fn stop(mut self) -> (ExitStatus, Vec<Value>) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        self.end()
    }

    /// Kills it where it stands.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    pub fn end(&mut self) -> (ExitStatus, Vec<Value>) {
        let deadline = Instant::now() + Duration::from_secs(90);
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                Instant::now() < deadline,
                "it does not end: {:#?}",
                self.seen
            );
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut seen = std::mem::take(&mut self.seen);
        seen.extend(self.lines.iter());
        (status, seen)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// The findings among lines.
pub fn findings(lines: &[Value]) -> Vec<&Value> {
    lines
        .iter()
        .filter(|line| line["type"] == "finding")
        .collect()
}

/// Runs the program to its end; its exit code and what it said on stderr.
pub fn run(command: &mut Command) -> (Option<i32>, String) {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    (child.wait().unwrap().code(), said)
}
