//! A missed wakeup in programs that have no fault of their own: somebody else takes the token.
//!
//! The plugin is stopped while it sleeps with empty rings, the host publishes and rings, the token is taken, the plugin
//! continues. Its interrupted epoll finds nothing ready and sleeps again. No timing is involved.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use rustix::process::Signal;
use tokio::sync::oneshot;

use crate::calls::Peer;
use crate::lane::{Endpoint, Message};
use crate::{child, look, thief};

/// Who takes the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Thief {
    /// The host itself, through a duplicate of the plugin's fd.
    Host,
    /// Another process.
    Process,
}

/// Options of a stand-in that is started as a thief.
#[derive(Debug, Clone, Copy, Args)]
pub struct ThiefOptions {
    /// The process that loses it
    #[arg(long)]
    pub pid: u32,
    /// The doorbell's number in that process
    #[arg(long)]
    pub fd: i32,
    /// First stop the process, wait for a token, and let the process continue afterwards
    #[arg(long)]
    pub ambush: bool,
}

/// How long anything here may take that should take no time at all.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends `victim` to an idle plugin and takes the token that announces it. The answer stays open.
pub async fn steal_from_plugin<E: Endpoint>(
    peer: &Peer<E>,
    victim: Message,
    by: Thief,
) -> anyhow::Result<oneshot::Receiver<Message>> {
    ensure!(
        look::until(PATIENCE, || look::is_idle(peer.pid)).await,
        "plugin {} does not become idle",
        peer.pid
    );
    child::signal(peer.pid, Signal::STOP)?;
    ensure!(
        look::until(PATIENCE, || look::is_stopped(peer.pid)).await,
        "plugin {} does not stop",
        peer.pid
    );
    let answer = peer.ask(victim).await?;
    match by {
        Thief::Host => {
            let taken = thief::steal_token(peer.pid, peer.plugin_fd)
                .context("reaching the plugin's doorbell")?;
            ensure!(taken, "no token was queued on the plugin's doorbell");
        }
        Thief::Process => send_thief(peer.pid, peer.plugin_fd, false)?,
    }
    child::signal(peer.pid, Signal::CONT)?;
    ensure!(
        look::until(PATIENCE, || look::is_idle(peer.pid)).await,
        "plugin {} does not sleep again",
        peer.pid
    );
    Ok(answer)
}

/// Starts this program again as a thief and waits for it.
pub fn send_thief(pid: u32, fd: i32, ambush: bool) -> anyhow::Result<()> {
    let mut command = Command::new(std::env::current_exe().context("finding our own program")?);
    command.args(["thief", &format!("--pid={pid}"), &format!("--fd={fd}")]);
    if ambush {
        command.arg("--ambush");
    }
    child::die_with_parent(&mut command, &[]);
    if !command.status().context("starting the thief")?.success() {
        bail!("the thief found nothing to take");
    }
    Ok(())
}

/// Runs as a thief.
pub fn run(options: ThiefOptions) -> anyhow::Result<()> {
    let ThiefOptions { pid, fd, ambush } = options;
    let take = || {
        thief::steal_token(pid, fd).with_context(|| format!("reaching fd {fd} of process {pid}"))
    };
    if !ambush {
        ensure!(
            take()?,
            "nothing is queued on fd {fd} of process {pid}: nothing to take"
        );
        return Ok(());
    }
    child::signal(pid, Signal::STOP)?;
    let start = std::time::Instant::now();
    let mut taken = Ok(false);
    while matches!(taken, Ok(false)) && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_micros(200));
        taken = take();
    }
    // Whatever happened: the process must not stay stopped.
    child::signal(pid, Signal::CONT)?;
    ensure!(
        taken?,
        "nothing came to fd {fd} of process {pid}: nothing to take"
    );
    Ok(())
}
