//! The command line of both programs.

use std::process::Command;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use sim_kit::cli::{HostOptions, PluginOptions};
use sim_kit::host::{self, Planted};
use sim_kit::lane::Transport;
use sim_kit::{child, plugin, thief};

use crate::steal::{Theft, Thief, steal};

/// Host and plugins on a published rapace transport
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Create a hub, start plugins, and make calls to them
    Host(Box<Host>),
    /// Answer every request with its own payload
    Plugin(PluginOptions),
    /// Take one token out of the doorbell of another process
    Thief {
        /// The process that loses it
        #[arg(long)]
        pid: u32,
        /// The doorbell's number in that process
        #[arg(long)]
        fd: i32,
    },
}

#[derive(Debug, Args)]
struct Host {
    #[command(flatten)]
    options: HostOptions,
    /// After N round trips of a plugin, steal its next token: `N` or `N:PEER` [peer default: 0]
    #[arg(long)]
    steal_after: Option<Theft>,
    /// Who takes it
    #[arg(long, value_enum, default_value_t = Thief::Process)]
    thief: Thief,
}

/// Runs the program on transport `T`.
pub fn main<T: Transport>() -> anyhow::Result<()> {
    match Cli::parse().role {
        Role::Plugin(options) => plugin::run::<T>(&options),
        Role::Thief { pid, fd } => {
            if thief::steal_token(pid, fd)
                .with_context(|| format!("reaching fd {fd} of process {pid}"))?
            {
                return Ok(());
            }
            bail!("nothing is queued on fd {fd} of process {pid}: nothing to take");
        }
        Role::Host(host) => {
            let runtime = host.options.runtime.build(host.options.workers)?;
            let (theft, thief) = (host.steal_after, host.thief);
            let result =
                runtime.block_on(host::run::<T, _>(
                    host.options,
                    async move |stage| match theft {
                        Some(theft) => steal(&stage, theft, thief).await,
                        None => Ok(Planted::Nothing),
                    },
                ));
            // A blocking futex wait of a lane that hangs must not hold up the end.
            runtime.shutdown_background();
            result
        }
    }
}

/// Starts this program again as a thief and waits for it.
pub(crate) fn send_thief(pid: u32, fd: i32) -> anyhow::Result<()> {
    let mut command = Command::new(std::env::current_exe().context("finding our own program")?);
    command.args(["thief", &format!("--pid={pid}"), &format!("--fd={fd}")]);
    child::die_with_parent(&mut command, &[]);
    if !command.status().context("starting the thief")?.success() {
        bail!("the thief found nothing to take");
    }
    Ok(())
}
