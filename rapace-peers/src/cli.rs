//! The command line of both programs.

use clap::{Args, Parser, Subcommand};
use sim_kit::cli::{HostOptions, PluginOptions};
use sim_kit::lane::Transport;
use sim_kit::plugin;
use sim_kit::run::{self, Planted};
use sim_kit::theft::{self, Thief, ThiefOptions};

use crate::steal::{Theft, steal};

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
    Thief(ThiefOptions),
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
        Role::Thief(options) => theft::run(options),
        Role::Host(host) => {
            let runtime = host.options.runtime.build(host.options.workers)?;
            let (theft, thief) = (host.steal_after, host.thief);
            let result =
                runtime.block_on(run::run::<T, _>(
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
