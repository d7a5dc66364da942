//! Starting `shmtrace` and the processes that it is tried on.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use shmtrace::teardown::Tree;

/// `shmtrace` with these arguments, without settings from the environment.
pub(crate) fn shmtrace(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shmtrace"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SHMTRACE_") {
            command.env_remove(name);
        }
    }
    for name in ["RUST_LOG", "CI", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
        command.env_remove(name);
    }
    // Help is as wide as the terminal, if there is one.
    command
        .env("COLUMNS", "100")
        .args(args)
        .stdin(Stdio::null());
    command
}

/// Has the kernel refuse a system call to the command, as containers do.
pub(crate) fn without_call(command: &mut Command, number: libc::c_long) {
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let number = u32::try_from(number).unwrap();
    let refuse = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EACCES).unwrap();
    let code = |part: u32| u16::try_from(part).unwrap();
    let mut filter = [
        // The number of the call is the first field of what a filter sees.
        instruction(code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS), 0, 0, 0),
        instruction(
            code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K),
            0,
            1,
            number,
        ),
        instruction(code(libc::BPF_RET | libc::BPF_K), 0, 0, refuse),
        instruction(
            code(libc::BPF_RET | libc::BPF_K),
            0,
            0,
            libc::SECCOMP_RET_ALLOW,
        ),
    ];
    let in_child = move || {
        let program = libc::sock_fprog {
            len: 4,
            filter: filter.as_mut_ptr(),
        };
        // SAFETY: the filter has as many instructions as stated, and the kernel copies it.
        let result = unsafe {
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: runs in the forked child, and makes one system call on data that was made before.
    unsafe { command.pre_exec(in_child) };
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

    /// The same, with an input to write to.
    pub(crate) fn start_with_input(command: &mut Command) -> (Self, ChildStdin) {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let input = child.stdin.take().unwrap();
        (Self { child, lines }, input)
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

/// A host with two plugins, and what it said of them.
pub(crate) struct Host {
    target: Target,
    /// Where its hub is: a host that is killed leaves it behind. Goes after the host.
    _folder: tempfile::TempDir,
    /// Pid of each peer's plugin.
    pub(crate) plugins: std::collections::BTreeMap<u64, u32>,
}

/// What the hosts of the tests are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `ddc-sim`, on this workspace's transport.
    Sim,
    /// rapace 0.4.
    Rapace,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Sim, Self::Rapace];

    /// For the names of snapshots.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sim => "sim",
            Self::Rapace => "rapace",
        }
    }

    /// What its host's process is called.
    pub(crate) fn program_name(self) -> &'static str {
        match self {
            Self::Sim => "ddc-sim",
            Self::Rapace => "rapace-peer-04",
        }
    }

    pub(crate) fn program(self) -> PathBuf {
        sibling(self.program_name())
    }
}

/// A copy of the program that everybody may start: where it was built, nobody else may be let in.
pub(crate) fn program_for_all() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let program = folder.path().join("shmtrace");
    // By another process: a file that this one has open for writing may be inherited for a moment by what another test
    // starts, and cannot be executed meanwhile (ETXTBSY).
    let mut copy = Command::new("cp");
    copy.args([env!("CARGO_BIN_EXE_shmtrace").as_ref(), program.as_os_str()]);
    assert!(copy.status().unwrap().success());
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).unwrap();
    (folder, program)
}

/// Runs that copy as a user without any rights.
pub(crate) fn run_as_nobody(program: &Path, args: &[&str]) -> Ran {
    let mut command = Command::new(program);
    command.args(args).current_dir("/").uid(65534).gid(65534);
    Ran::from(command.output().unwrap())
}

impl Host {
    /// A hung one: the entry for peer 1 lies in its ring, and the wakeup for it is gone. Everybody sleeps.
    pub(crate) fn hung(kind: Kind) -> Self {
        let fault: &[&str] = match kind {
            Kind::Sim => &["--fault", "consumed-then-slept:peer=1,after=50"],
            Kind::Rapace => &["--steal-after", "50:1"],
        };
        Self::start(&mut Command::new(kind.program()), fault, "\"fault\"")
    }

    /// A healthy one, at work.
    pub(crate) fn healthy(kind: Kind) -> Self {
        Self::start(&mut Command::new(kind.program()), &[], "\"ready\"")
    }

    /// Starts it, and waits until it says `last`.
    pub(crate) fn start(command: &mut Command, more: &[&str], last: &str) -> Self {
        command.args([
            "host",
            "--plugins",
            "2",
            "--workers",
            "1",
            "--round-trips",
            "0",
        ]);
        let folder = tempfile::tempdir().unwrap();
        if !more.contains(&"--hub") {
            command.arg("--hub").arg(folder.path().join("hub.shm"));
        }
        command.args(["--payload", "8"]).args(more);
        if !more.contains(&"--gap") {
            command.args(["--gap", "300us"]);
        }
        let mut target = Target::start(command);
        let mut plugins = std::collections::BTreeMap::new();
        loop {
            let line = target.line();
            assert!(!line.is_empty(), "the host ended before it said {last}");
            let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if event["event"] == "plugin" {
                let pid = event["pid"].as_u64().unwrap().try_into().unwrap();
                plugins.insert(event["peer"].as_u64().unwrap(), pid);
            }
            if line.contains(last) {
                return Self {
                    target,
                    _folder: folder,
                    plugins,
                };
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.target.pid()
    }

    /// The pid as an argument.
    pub(crate) fn arg(&self) -> String {
        self.target.arg()
    }

    /// Sends a signal to the process of this pid, which is one of this host's.
    pub(crate) fn signal(&self, pid: u32, signal: Signal) {
        assert!(pid == self.pid() || self.plugins.values().any(|plugin| *plugin == pid));
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }
}
