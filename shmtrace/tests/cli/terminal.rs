//! At a terminal: colour, the status line, ^C and ^Z. The terminal is that of `script`.

use std::{
    io::{Read as _, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use crate::support::{Host, Kind, Ran, run, shmtrace};

/// How long something may take to appear.
const PATIENCE: Duration = Duration::from_secs(30);

/// A command at a terminal of its own.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    screen: Receiver<Vec<u8>>,
    /// What it has shown so far.
    shown: String,
}

impl Terminal {
    /// Starts a shell command line; `shmtrace` in it is the program under test.
    fn start(line: &str, environment: &[(&str, &str)]) -> Self {
        let mut script = Command::new("script");
        let plain = shmtrace(&[]);
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => script.env(name, value),
                None => script.env_remove(name),
            };
        }
        let program = env!("CARGO_BIN_EXE_shmtrace");
        let line = format!("shmtrace() {{ '{program}' \"$@\"; }}; {line}");
        script
            .args(["--quiet", "--return", "--flush", "--command"])
            .arg(line)
            .arg("/dev/null")
            .env("SHELL", "/bin/bash")
            .env("TERM", "xterm")
            .envs(environment.iter().copied());
        let mut child = script
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, screen) = channel();
        let mut output = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = output.read(&mut buffer) {
                if sender.send(buffer[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        let keys = child.stdin.take().unwrap();
        Self {
            child,
            keys,
            screen,
            shown: String::new(),
        }
    }

    /// Waits until it has shown `wanted` since the last time; returns what came before.
    fn wait_for(&mut self, wanted: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.shown.find(wanted) {
                let before = self.shown[..at].to_owned();
                self.shown.drain(..at + wanted.len());
                return before;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.shown.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("{wanted:?} did not come ({error}): {:?}", self.shown),
            }
        }
    }

    fn type_keys(&mut self, keys: &str) {
        // It may have ended meanwhile, which `end` tells.
        let _gone = self
            .keys
            .write_all(keys.as_bytes())
            .and_then(|()| self.keys.flush());
    }

    /// Its exit code and the rest of what it has shown.
    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = std::mem::take(&mut self.shown);
        for bytes in &self.screen {
            rest.push_str(&String::from_utf8_lossy(&bytes));
        }
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Closing the terminal hangs up whatever runs there.
        let _gone_already = self.child.kill();
        let _status = self.child.wait();
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn the_status_line_redraws_and_goes() {
    let host = Host::healthy(Kind::Rapace);
    let line = format!("shmtrace --pid-tree {}", host.arg());
    let mut terminal = Terminal::start(&line, &[]);
    for _ in 0..3 {
        terminal.wait_for("\r\u{1b}[2K2 peers | ");
        terminal.wait_for(" events/s | 0 lost | oldest waiting entry: ");
    }
    terminal.type_keys("\u{3}");
    terminal.wait_for("\r\u{1b}[2K");
    terminal.wait_for("no findings in ");
    let (code, rest) = terminal.end();
    assert_eq!(code, Some(0), "{rest}");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn no_status_line_where_it_is_not_wanted() {
    // Slow, so that the records of a whole watch fit into the buffers: beside other tests it may hardly get to run.
    let mut command = Command::new(Kind::Rapace.program());
    let host = Host::start(&mut command, &["--gap", "5ms"], "\"ready\"");
    let watch = format!("shmtrace --duration 1s --pid-tree {}", host.arg());
    for (line, environment) in [
        (watch.clone(), &[("TERM", "dumb")][..]),
        (format!("{watch} --quiet"), &[]),
        (format!("{watch} --format json"), &[]),
        (format!("{watch} 2>/dev/null"), &[]),
    ] {
        let (code, shown) = Terminal::start(&line, environment).end();
        assert_eq!(code, Some(0), "{line}: {shown}");
        assert!(!shown.contains("events/s"), "{line}: {shown}");
        assert!(!shown.contains('\u{1b}'), "{line}: {shown:?}");
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn inspect_redraws_a_page_that_fits() {
    let host = Host::healthy(Kind::Sim);
    // Without colour, a terminal still moves its cursor.
    for environment in [&[][..], &[("NO_COLOR", "1")]] {
        let watch = format!("shmtrace inspect --watch=100ms --pid-tree {}", host.arg());
        let line = format!("stty rows 12 cols 60; {watch}");
        let mut terminal = Terminal::start(&line, environment);
        terminal.wait_for("\u{1b}[2J");
        let mut pages = Vec::new();
        terminal.wait_for("\u{1b}[H");
        for _ in 0..3 {
            pages.push(terminal.wait_for("\u{1b}[H"));
        }
        for page in &pages {
            let rows: Vec<&str> = page.split("\r\n").collect();
            assert_eq!(rows.len(), 12, "{page:?}");
            let widest = rows.iter().map(|row| row.replace("\u{1b}[K", "").len());
            assert!(widest.max() < Some(60), "{page:?}");
            assert!(rows[0].starts_with("hub "), "{page:?}");
            assert!(rows[10].contains("more lines"), "{page:?}");
        }
        let waiting = |page: &str| page.lines().any(|line| line.contains("recv_ring"));
        assert!(pages.iter().all(|page| waiting(page)), "{pages:?}");
        assert!(pages[0] != pages[2], "{pages:?}");
        terminal.type_keys("\u{3}");
        let (code, rest) = terminal.end();
        assert_eq!(code, Some(0), "{rest}");
    }
    let watch = format!("shmtrace inspect --watch=50ms --pid-tree {}", host.arg());
    let mut dumb = Terminal::start(&watch, &[("TERM", "dumb")]);
    let first = dumb.wait_for("consistency: sound");
    let second = dumb.wait_for("consistency: sound");
    assert!(!(first + &second).contains('\u{1b}'));
    dumb.type_keys("\u{3}");
    assert_eq!(dumb.end().0, Some(0));
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn colour_is_for_terminals_that_want_it() {
    let host = Host::hung(Kind::Sim);
    let red = "\u{1b}[31m";
    let args = ["--quiet", "--duration", "1s", "--pid-tree", &host.arg()];
    let line = format!("shmtrace {}", args.join(" "));
    for (environment, coloured) in [
        (&[][..], true),
        (&[("NO_COLOR", "1")], false),
        (&[("TERM", "dumb")], false),
        (&[("TERM", "dumb"), ("CI", "true")], false),
        (&[("TERM", "dumb"), ("CLICOLOR_FORCE", "1")], true),
    ] {
        let (_, shown) = Terminal::start(&line, environment).end();
        assert!(shown.contains("MISSED"), "{environment:?}: {shown:?}");
        assert_eq!(shown.contains(red), coloured, "{environment:?}: {shown:?}");
    }
    assert!(!run(&args).stdout.contains(red), "a pipe");
    let forced = shmtrace(&args).env("CLICOLOR_FORCE", "1").output().unwrap();
    assert!(
        Ran::from(forced).stdout.contains(red),
        "a pipe that wants it"
    );
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn nothing_is_drawn_over_what_a_command_prints() {
    let line = "shmtrace run -- bash -c 'echo -n par; sleep 1; echo tial'";
    let (code, shown) = Terminal::start(line, &[]).end();
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("partial\r\n"), "{shown:?}");
    assert!(shown.contains("no findings in"), "{shown:?}");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn interrupt_reaches_the_command_and_its_status_counts() {
    let script = "trap \"echo got it; exit 9\" INT; echo up; while :; do sleep 0.01; done";
    let line = format!("shmtrace run --quiet -- bash -c '{script}'");
    let mut terminal = Terminal::start(&line, &[]);
    terminal.wait_for("up\r\n");
    terminal.type_keys("\u{3}");
    terminal.wait_for("got it");
    let (code, rest) = terminal.end();
    assert_eq!(code, Some(9), "{rest}");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_command_that_does_not_hear_an_interrupt_ends_at_the_second() {
    let script = "trap \"\" INT; echo up; while :; do sleep 0.01; done";
    let line = format!("shmtrace run --quiet --timeout 100ms -- bash -c '{script}'");
    let mut terminal = Terminal::start(&line, &[]);
    terminal.wait_for("up\r\n");
    terminal.type_keys("\u{3}");
    terminal.wait_for("^C");
    // A second one that comes before the first was taken is one with it (signal(7)): so type on, as people do.
    let deadline = Instant::now() + PATIENCE;
    while terminal.child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it does not end");
        terminal.type_keys("\u{3}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let (code, rest) = terminal.end();
    assert_eq!(
        code,
        Some(128 + 9),
        "it is killed after the timeout: {rest}"
    );
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn the_command_reads_the_terminal_and_stops_and_goes_on_with_it() {
    let mut terminal = Terminal::start("PS1='ready$ ' exec bash --norc --noprofile -i", &[]);
    terminal.wait_for("ready$ ");
    let program = env!("CARGO_BIN_EXE_shmtrace");
    terminal.type_keys(&format!(
        "{program} run --quiet -- bash -c 'echo a\"\"sk; read word; echo said $word; read word; exit 5'\n"
    ));
    terminal.wait_for("ask\r\n");
    terminal.type_keys("hello\n");
    terminal.wait_for("said hello");
    terminal.type_keys("\u{1a}");
    terminal.wait_for("Stopped");
    terminal.wait_for("ready$ ");
    terminal.type_keys("fg\n");
    terminal.wait_for("run --quiet");
    terminal.type_keys("more\n");
    terminal.wait_for("ready$ ");
    terminal.type_keys("echo status $?\n");
    terminal.wait_for("status 5");
    terminal.type_keys("exit\n");
}
