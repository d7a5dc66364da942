//! A stand-in for `ddc` that runs, and the lines that it says.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, Sender},
    thread,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::process::{self, Guard};

/// Who said a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaker {
    /// The traced program.
    Sim,
    /// shmtrace.
    Tracer,
}

/// A line of either, or that it says no more.
pub(crate) struct Said {
    pub(crate) speaker: Speaker,
    pub(crate) line: Option<Value>,
}

/// A program whose lines arrive beside those of others.
pub(crate) struct Talker {
    guard: Guard,
    input: Option<ChildStdin>,
}

impl Talker {
    /// Starts a program; everything that it prints goes to `lines`.
    pub(crate) fn start(
        mut command: Command,
        speaker: Speaker,
        lines: &Sender<Said>,
    ) -> Result<Self> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let output = child.stdout.take().context("a child has no stdout")?;
        let input = child.stdin.take();
        let lines = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let Ok(line) = serde_json::from_str(&line) else {
                    continue;
                };
                if lines
                    .send(Said {
                        speaker,
                        line: Some(line),
                    })
                    .is_err()
                {
                    return;
                }
            }
            // Nobody may be listening any more.
            let _ = lines.send(Said {
                speaker,
                line: None,
            });
        });
        Ok(Self {
            guard: Guard(child),
            input,
        })
    }

    /// Tells it to go on.
    pub(crate) fn go(&mut self) -> Result<()> {
        let mut input = self.input.take().context("it was told to go on already")?;
        input.write_all(b"go\n").context("it does not listen")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.guard.0.id()
    }

    /// Asks it to end, as ^C would.
    pub(crate) fn interrupt(&mut self) -> Result<()> {
        if self.guard.0.try_wait()?.is_none() {
            process::interrupt(&self.guard.0)?;
        }
        Ok(())
    }

    /// Lets its stdin end.
    pub(crate) fn hang_up(&mut self) {
        self.input = None;
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        self.guard.0.wait().context("cannot wait for a child")
    }

    /// Kills it where it stands, and waits for its end.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.guard.0.kill().context("cannot kill a child")?;
        self.wait().map(drop)
    }

    /// Asks it to end and waits.
    pub(crate) fn end(self) -> Result<()> {
        self.guard.end()
    }
}

/// The traced program and its tracer.
pub(crate) struct Scene<'a> {
    pub(crate) programs: &'a Path,
    pub(crate) lines: Receiver<Said>,
    sender: Sender<Said>,
}

impl<'a> Scene<'a> {
    pub(crate) fn new(programs: &'a Path) -> Self {
        let (sender, lines) = mpsc::channel();
        Self {
            programs,
            lines,
            sender,
        }
    }

    /// Starts a stand-in.
    pub(crate) fn host(&self, program: &str, args: &[String]) -> Result<Talker> {
        let mut command = Command::new(self.programs.join(program));
        command.arg("host").args(args);
        Talker::start(command, Speaker::Sim, &self.sender)
    }

    /// Starts shmtrace on it.
    pub(crate) fn tracer(&self, pid: u32, args: &[String]) -> Result<Talker> {
        let mut command = Command::new(self.programs.join("shmtrace"));
        command
            .args(["--format", "json"])
            .args(args)
            .args(["--pid-tree", &pid.to_string()]);
        Talker::start(command, Speaker::Tracer, &self.sender)
    }
}

/// Random numbers from a seed (splitmix64), so that a trial can be repeated.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end.max(1)
    }

    pub(crate) fn one_of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        let choice = self.below(choices.len() as u64);
        &choices[usize::try_from(choice).unwrap_or_default()]
    }
}
