//! The processes of a campaign: a host in traffic, a witness, and shmtrace.

use std::{
    path::Path,
    process::Command,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::corpus::sim::{Said, Speaker, Talker};

/// How long a process may take to say what it is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was heard of a process within a time.
pub(super) enum Heard {
    Line(Value),
    Nothing,
    /// It says no more.
    End,
}

/// A process that says lines, by itself.
pub(super) struct Actor {
    talker: Talker,
    lines: Receiver<Said>,
    name: String,
}

impl Actor {
    /// Starts one of the built programs.
    pub(super) fn start(programs: &Path, program: &str, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(programs.join(program));
        command.args(args);
        let (sender, lines) = mpsc::channel();
        Ok(Self {
            talker: Talker::start(command, Speaker::Sim, &sender)?,
            lines,
            name: program.to_owned(),
        })
    }

    /// A host in traffic without end, greeted by its plugins.
    pub(super) fn host(programs: &Path, args: &[&str]) -> Result<(Self, Vec<u32>)> {
        let args = [&["host", "--round-trips", "0"], args].concat();
        let mut host = Self::start(programs, "ddc-sim", &args)?;
        let mut pids = vec![host.pid()];
        host.wait(|line| {
            if line["event"] == "plugin" {
                pids.extend(number(&line["pid"]));
            }
            line["event"] == "ready"
        })?;
        Ok((host, pids))
    }

    /// shmtrace on these trees.
    pub(super) fn tracer(programs: &Path, roots: &[u32], args: &[&str]) -> Result<Self> {
        let roots: Vec<String> = roots.iter().map(u32::to_string).collect();
        let list = roots.join(",");
        let fixed = ["--format", "json", "--pid-tree", &list];
        Self::start(programs, "shmtrace", &[&fixed[..], args].concat())
    }

    pub(super) fn pid(&self) -> u32 {
        self.talker.pid()
    }

    /// The next line; `None` if it says no more. An error if there is none for long.
    pub(super) fn next(&self) -> Result<Option<Value>> {
        match self.next_within(PATIENCE)? {
            Heard::Line(line) => Ok(Some(line)),
            Heard::End => Ok(None),
            Heard::Nothing => bail!("{} said nothing for {PATIENCE:?}", self.name),
        }
    }

    /// The next line within a time.
    pub(super) fn next_within(&self, time: Duration) -> Result<Heard> {
        match self.lines.recv_timeout(time) {
            Ok(said) => Ok(said.line.map_or(Heard::End, Heard::Line)),
            Err(RecvTimeoutError::Timeout) => Ok(Heard::Nothing),
            Err(RecvTimeoutError::Disconnected) => bail!("{} ended", self.name),
        }
    }

    /// The first line that is wanted.
    pub(super) fn wait(&mut self, mut wanted: impl FnMut(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match self.next()? {
                Some(line) if wanted(&line) => return Ok(line),
                Some(_) => {}
                None => bail!("{} ended before it said what was waited for", self.name),
            }
        }
        bail!("{} did not say what was waited for", self.name)
    }

    /// Its last line before it ends by itself.
    pub(super) fn last_line(&self) -> Result<Value> {
        let mut last = Value::Null;
        while let Some(line) = self.next()? {
            last = line;
        }
        Ok(last)
    }

    /// Asks it to end, as ^C would; its last line, and how it ended.
    pub(super) fn finish(mut self) -> Result<(Value, std::process::ExitStatus)> {
        self.talker.interrupt()?;
        let last = self.last_line()?;
        Ok((last, self.talker.wait()?))
    }

    /// Lets its stdin end; its last line.
    pub(super) fn hang_up(mut self) -> Result<Value> {
        self.talker.hang_up();
        let last = self.last_line()?;
        self.talker.wait()?;
        Ok(last)
    }

    /// Waits for its own end; its last line, and how it ended.
    pub(super) fn end(mut self) -> Result<(Value, std::process::ExitStatus)> {
        let last = self.last_line()?;
        Ok((last, self.talker.wait()?))
    }

    /// Kills it where it stands.
    pub(super) fn kill(mut self) -> Result<()> {
        self.talker.kill()
    }
}

/// A number in a line; 0 if it says none.
pub(super) fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

/// The counters of a line, by name.
pub(super) fn count(line: &Value, name: &str) -> u64 {
    line[name].as_u64().unwrap_or(u64::MAX)
}
