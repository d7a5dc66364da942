//! `shmtrace run`: start a command under a memory limit and trace it from its first instruction.
//!
//! The command stays in this process group, so the terminal treats both as one job: ^C and ^Z reach both. No status line is
//! drawn, which would go over what the command prints. A signal that
//! the terminal sent is left to the command; one that was sent to this process alone is passed on or ends the tree.
//! Orphans of the tree come to this process (`PR_SET_CHILD_SUBREAPER`), so that none escapes when it is ended.

mod signals;

use std::{ffi::OsString, os::fd::AsFd as _, time::Duration};

use anyhow::Context as _;
use rustix::process::Signal;
use tokio::io::{Interest, unix::AsyncFd};

use super::{kill, watch::Tracing};
use crate::{
    exit::{self, Exit, Refusal},
    launch::{
        Account, Held, LaunchError, Limited, MemoryMax, Plan, Running, exit_code, parse_memory_max,
    },
    report::{Report, printable},
    rights::Role,
    session::{Options, Session},
    teardown::Tree,
};

use signals::{Received, Signals};

/// How often the counter of OOM kills is read: systemd removes a scope, and the counter with it, when it is empty.
const OOM_AGAIN: Duration = Duration::from_millis(100);

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct Run {
    /// Memory that the command and all its descendants may use, or "none"
    #[arg(long, value_name = "SIZE", default_value = "4G", env = "SHMTRACE_MEMORY_MAX", value_parser = parse_memory_max)]
    memory_max: MemoryMax,

    /// Run the command as the user who called sudo, or as this one, so that its files do not end up root's
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true, env = "SHMTRACE_USER")]
    #[expect(
        clippy::option_option,
        reason = "clap's way to say: absent, or present with or without a value"
    )]
    user: Option<Option<String>>,

    /// When told to stop: SIGKILL what has not ended after this time
    #[arg(long, value_name = "DURATION", default_value = "5s", env = "SHMTRACE_TIMEOUT", value_parser = humantime::parse_duration)]
    timeout: Duration,

    /// The command and its arguments
    #[arg(
        value_name = "CMD",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<OsString>,

    #[command(flatten)]
    tracing: Tracing,
}

/// Why following the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// It ended.
    Ended,
    /// This process was told to end it.
    Told(Signal),
}

impl Run {
    /// Starts, traces, and ends with the command's status.
    pub fn run(self) -> anyhow::Result<Exit> {
        let account = self.account()?;
        let signals = Signals::take_over().context("cannot take over signals")?;
        Tree::adopt_orphans().context("cannot become the reaper of the command's orphans")?;
        let plan = Plan {
            command: self.command.clone(),
            memory_max: self.memory_max,
            account,
            signal_mask: Some(signals.before()),
        };
        let held = match plan.hold() {
            Ok(held) => held,
            Err(error) => return not_started(error),
        };
        let mut options = self.tracing.options(vec![held.pid()]);
        options.role = Role::Run;
        let mut report = self.tracing.report(options.clock);
        report.leave_terminal();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(self.trace(&options, report.as_mut(), held, &signals))
    }

    fn account(&self) -> anyhow::Result<Option<Account>> {
        let account = match &self.user {
            None => return Ok(None),
            Some(None) => Account::of_sudo(),
            Some(Some(name)) => Account::find(name),
        };
        account
            .map(Some)
            .map_err(|error| Refusal::not_permitted(error.to_string()).into())
    }

    async fn trace(
        &self,
        options: &Options,
        report: &mut dyn Report,
        held: Held,
        signals: &Signals,
    ) -> anyhow::Result<Exit> {
        // Attached before the command's first instruction.
        let mut session = match Session::start(options, report) {
            Ok(session) => session,
            Err(error) => {
                held.abandon();
                return Err(error);
            }
        };
        let mut running = match held.release() {
            Ok(running) => running,
            Err(error) => return not_started(error),
        };
        let mut oom_kills = 0;
        let mut stop = Stop::Told(Signal::TERM); // what a --duration that is over means
        let traced = session
            .run(async { stop = follow(&running, signals, &mut oom_kills).await })
            .await;
        let traced = traced.and_then(|_| session.finish());
        let verdict = match traced {
            // Nobody reads the report any more: the command goes on all the same.
            Err(error) if exit::is_broken_pipe(&error) => {
                stop = follow(&running, signals, &mut oom_kills).await;
                Exit::Clean
            }
            other => {
                let verdict = other?;
                if verdict.blind && !self.tracing.is_quiet() {
                    anstream::eprintln!(
                        "shmtrace: no process of the command mapped a hub, so nothing could be judged"
                    );
                }
                verdict.exit
            }
        };
        if let Stop::Told(signal) = stop {
            self.end(signal)?;
        }
        let status = running.wait().context("cannot wait for the command")?;
        Self::say_what_happened(&running, oom_kills, stop);
        Ok(if verdict == Exit::Finding {
            verdict
        } else {
            Exit::Status(exit_code(status))
        })
    }

    /// Ends everything that the command started.
    fn end(&self, signal: Signal) -> anyhow::Result<()> {
        let mut tree = Tree::below_this_process().map_err(kill::refusal)?;
        let ending = tree
            .end(signal, self.timeout, |_| {})
            .map_err(kill::refusal)?;
        for (id, name, state) in &ending.survivors {
            anstream::eprintln!(
                "shmtrace: {} [{}] has SIGKILL but is not gone (state {state})",
                printable(name),
                id.pid
            );
        }
        Ok(())
    }

    /// OOM kills as what they are, and what still runs.
    fn say_what_happened(running: &Running, oom_kills: u64, stop: Stop) {
        if let Some(limited) = running.limited() {
            let kills = limited.oom_kills_at_end().max(oom_kills);
            if kills > 0 {
                let processes = if kills == 1 { "a process" } else { "processes" };
                anstream::eprintln!(
                    "shmtrace: memory-limit: the kernel killed {processes} of the command ({kills} in all) for want of \
                     memory: the limit of {} was reached ({}); give more with --memory-max",
                    limited.max(),
                    limited.way()
                );
            }
        }
        if stop == Stop::Ended
            && let Ok(tree) = Tree::below_this_process()
        {
            let left: Vec<String> = tree
                .members()
                .map(|member| member.id.pid.to_string())
                .collect();
            if !left.is_empty() {
                anstream::eprintln!(
                    "shmtrace: the command has ended, and processes that it started still run: \
                     end them with `shmtrace kill --pid-tree {}`",
                    left.join(" ")
                );
            }
        }
    }
}

/// Passes signals on until the command ends or is to be ended.
async fn follow(running: &Running, signals: &Signals, oom_kills: &mut u64) -> Stop {
    // SAFETY: borrowed for as long as it is registered, so it stays open and the same.
    let ended = unsafe { AsyncFd::register_with_interest(running.as_fd(), Interest::READABLE) };
    let (Ok(ended), Ok(mut signals)) = (ended, signals.listen()) else {
        return Stop::Told(Signal::TERM);
    };
    let mut interrupts = 0;
    loop {
        let kills = running.limited().and_then(Limited::oom_kills);
        *oom_kills = (*oom_kills).max(kills.unwrap_or(0));
        let received = tokio::select! {
            _ = ended.readable() => return Stop::Ended,
            () = tokio::time::sleep(OOM_AGAIN) => continue,
            received = signals.next() => received,
        };
        match received {
            Received {
                signal: Signal::CHILD,
                ..
            } => signals::reap_orphans(running.pid()),
            // The terminal sent it to the command, too. Again: the command does not listen.
            Received {
                signal: Signal::INT,
                by_terminal: true,
            } if interrupts == 0 => {
                interrupts += 1;
            }
            Received {
                signal: Signal::QUIT,
                by_terminal: true,
            } => {}
            Received {
                signal: signal @ (Signal::INT | Signal::TERM | Signal::HUP),
                ..
            } => {
                return Stop::Told(signal);
            }
            Received { signal, .. } => running.signal(signal),
        }
    }
}

/// Exit codes as shells have them: 127 not found, 126 not executable.
fn not_started(error: LaunchError) -> anyhow::Result<Exit> {
    let code = match error {
        LaunchError::NotFound { .. } => 127,
        LaunchError::NotExecutable { .. } => 126,
        LaunchError::NoLimit(_) => return Err(Refusal::not_permitted(error.to_string()).into()),
        LaunchError::Fork(_) => return Err(error.into()),
    };
    anstream::eprintln!("shmtrace: {error}");
    Ok(Exit::Status(code))
}
