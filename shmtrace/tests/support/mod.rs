//! Real host and plugin processes for tests, on the published rapace crates.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses the part of this that it needs"
)]

pub mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
    sync::OnceLock,
};

use serde_json::Value;

/// The path of a binary of the workspace, built first.
pub(crate) fn binary(package: &str, name: &str) -> PathBuf {
    static BUILT: OnceLock<std::sync::Mutex<BTreeSet<String>>> = OnceLock::new();
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let mut built = BUILT.get_or_init(Default::default).lock().unwrap();
    // `cargo xtask test` has built every program, with the features that the whole workspace gives them.
    let ready =
        std::env::var_os("SHMTRACE_REQUIRE_PROBES").is_some() && profile.join(name).exists();
    if !ready && built.insert(package.to_owned()) {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", package]);
        build.arg("--target-dir").arg(profile.parent().unwrap());
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(
            build.status().unwrap().success(),
            "{package} does not build"
        );
    }
    profile.join(name)
}

/// A host with its plugins; ended when dropped.
pub(crate) struct Peers {
    host: Child,
    lines: BufReader<ChildStdout>,
    /// What it reported so far.
    pub(crate) events: Vec<Value>,
}

impl Peers {
    /// Starts `rapace-peer-04 host ARGUMENTS`, or `-05`.
    pub(crate) fn start(version: &str, arguments: &[&str]) -> Self {
        Self::start_under(&[], version, arguments)
    }

    /// Starts it under a command such as `unshare`.
    pub(crate) fn start_under(prefix: &[&str], version: &str, arguments: &[&str]) -> Self {
        let peer = binary("rapace-peers", &format!("rapace-peer-{version}"));
        let mut command = match prefix {
            [program, rest @ ..] => {
                let mut command = Command::new(program);
                command.args(rest).arg(peer);
                command
            }
            [] => Command::new(peer),
        };
        let mut host = command
            .arg("host")
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(host.stdout.take().unwrap());
        Self {
            host,
            lines,
            events: Vec::new(),
        }
    }

    /// Pid of the process that was started.
    pub(crate) fn pid(&self) -> u32 {
        self.host.id()
    }

    /// Reads what it reports up to the next event of this name.
    pub(crate) fn wait_for(&mut self, name: &str) -> Value {
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line).unwrap();
            assert!(read > 0, "the host ended before it said {name}");
            let event: Value = serde_json::from_str(&line).unwrap();
            self.events.push(event.clone());
            if event["event"] == name {
                return event;
            }
        }
    }

    /// Pid of each peer's plugin, the last one where it was restarted.
    pub(crate) fn plugins(&self) -> BTreeMap<u16, u32> {
        let plugins = self
            .events
            .iter()
            .filter(|event| event["event"] == "plugin");
        let number = |value: &Value| u32::try_from(value.as_u64().unwrap()).unwrap();
        plugins
            .map(|event| {
                (
                    number(&event["peer"]).try_into().unwrap(),
                    number(&event["pid"]),
                )
            })
            .collect()
    }

    /// The path of the hub.
    pub(crate) fn hub(&self) -> String {
        let host = self.events.iter().find(|event| event["event"] == "host");
        host.unwrap()["hub"].as_str().unwrap().to_owned()
    }

    /// All processes of its tree.
    pub(crate) fn tree(&self) -> Vec<u32> {
        let mut pids = vec![self.pid()];
        let mut at = 0;
        while at < pids.len() {
            pids.extend(shmtrace::process::children(pids[at]));
            at += 1;
        }
        pids
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        // SIGTERM first: then its plugins end with it.
        let pid = rustix::process::Pid::from_child(&self.host);
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let ended = (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            self.host.try_wait().is_ok_and(|status| status.is_some())
        });
        if !ended {
            let _gone = self.host.kill();
            let _status = self.host.wait();
        }
        // A host that was killed leaves its hub behind.
        let host = self.events.iter().find(|event| event["event"] == "host");
        if let Some(hub) = host.and_then(|event| event["hub"].as_str()) {
            let _removed_by_the_host = std::fs::remove_file(hub);
        }
    }
}
