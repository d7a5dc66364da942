//! A test machine under QEMU: boots, runs its steps, tells over a serial line how they ended.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{ChildStdout, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::process::{self, Guard};

/// What a machine is told to do.
pub(crate) struct Step {
    /// One word.
    pub(crate) name: &'static str,
    /// How long it may take; then it is killed.
    pub(crate) seconds: u32,
    /// One line for busybox's shell.
    pub(crate) script: String,
}

/// How a step ended.
pub(crate) struct Outcome {
    pub(crate) name: String,
    pub(crate) status: i32,
    pub(crate) output: Vec<String>,
}

/// What a machine did.
pub(crate) struct Report {
    /// `uname -r`
    pub(crate) kernel: String,
    pub(crate) outcomes: Vec<Outcome>,
    pub(crate) took: Duration,
}

/// The line of `/steps` that the machine's first process reads.
pub(crate) fn line(step: &Step) -> String {
    format!("{}\t{}\t{}\n", step.name, step.seconds, step.script)
}

/// Boots a kernel and waits until all its steps have ended. The kernel's messages and the steps' output are kept in `folder`.
pub(crate) fn run(
    kernel: &Path,
    initramfs: &Path,
    folder: &Path,
    limit: Duration,
) -> Result<Report> {
    let started = Instant::now();
    let console = folder.join("console.log");
    let console_shown = console.display().to_string();
    // One thread for both processors: with more, QEMU may run code that another processor has patched since, and the
    // kernel patches its tracepoints in and out while it runs ("Oops: int3").
    let mut qemu = process::command(
        "qemu-system-x86_64",
        [
            "-accel",
            "tcg,thread=single",
            "-cpu",
            "max,-cx16",
            "-smp",
            "2",
            "-m",
            "768",
        ],
    );
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    qemu.arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs);
    qemu.args([
        "-append",
        "console=ttyS0 panic=-1 oops=panic softlockup_panic=1 hung_task_panic=1",
    ]);
    qemu.arg("-serial")
        .arg(format!("file:{console_shown}"))
        .args(["-serial", "stdio"]);
    qemu.stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let mut machine = Guard(qemu.spawn().context("cannot start qemu-system-x86_64")?);
    let output = machine.0.stdout.take().context("qemu has no output")?;

    let lines = lines_of(output);
    let transcript = folder.join("transcript.log");
    let mut transcript = File::create(&transcript)
        .with_context(|| format!("cannot write {}", transcript.display()))?;
    let mut told = Told::default();
    while !told.done {
        let left = limit.saturating_sub(started.elapsed());
        match lines.recv_timeout(left) {
            Ok(line) => {
                writeln!(transcript, "{line}")?;
                told.hear(&line);
            }
            Err(RecvTimeoutError::Timeout) => bail!(
                "not done after {limit:?}: {}; the kernel's last words:\n{}",
                told.where_it_is(),
                last_words(&console)
            ),
            Err(RecvTimeoutError::Disconnected) => bail!(
                "the machine went down: {}; the kernel's last words:\n{}",
                told.where_it_is(),
                last_words(&console)
            ),
        }
    }
    Ok(Report {
        kernel: told.kernel,
        outcomes: told.outcomes,
        took: started.elapsed(),
    })
}

/// What the serial line said so far.
#[derive(Default)]
struct Told {
    kernel: String,
    current: Option<Outcome>,
    outcomes: Vec<Outcome>,
    done: bool,
}

impl Told {
    fn hear(&mut self, line: &str) {
        let Some(message) = line.strip_prefix("@@") else {
            if let Some(current) = &mut self.current {
                current.output.push(line.to_owned());
            }
            return;
        };
        let words: Vec<&str> = message.split(' ').collect();
        match words[..] {
            ["kernel", release] => release.clone_into(&mut self.kernel),
            ["begin", name] => {
                self.current = Some(Outcome {
                    name: name.to_owned(),
                    status: -1,
                    output: Vec::new(),
                });
            }
            ["end", name, status] => {
                if let Some(mut outcome) = self.current.take_if(|current| current.name == name) {
                    outcome.status = status.parse().unwrap_or(-1);
                    self.outcomes.push(outcome);
                }
            }
            ["done"] => self.done = true,
            _ => {}
        }
    }

    fn where_it_is(&self) -> String {
        match (&self.current, self.kernel.is_empty()) {
            (Some(step), _) => format!("in step `{}`", step.name),
            (None, true) => "before its first process spoke".to_owned(),
            (None, false) => format!("after {} steps", self.outcomes.len()),
        }
    }
}

fn lines_of(output: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { return };
            let line = String::from_utf8_lossy(&line)
                .trim_end_matches('\r')
                .to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn last_words(console: &Path) -> String {
    let log = fs::read(console).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::Told;

    #[test]
    fn a_transcript_is_cut_into_steps() {
        let mut told = Told::default();
        for line in [
            "noise",
            "@@kernel 5.10.0-46-cloud-amd64",
            "@@begin one",
            "{\"a\":1}",
            "",
            "@@end one 3",
            "@@begin two",
        ] {
            told.hear(line);
        }
        assert_eq!(told.where_it_is(), "in step `two`");
        assert_eq!(told.kernel, "5.10.0-46-cloud-amd64");
        assert_eq!(
            (told.outcomes[0].status, told.outcomes[0].output.len()),
            (3, 2)
        );
        assert!(!told.done);
        told.hear("@@end two 0");
        told.hear("@@done");
        assert!(told.done && told.outcomes.len() == 2);
    }
}
