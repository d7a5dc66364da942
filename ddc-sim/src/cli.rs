//! The command line.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use shm_transport::host_section;
use sim_kit::child;
use sim_kit::cli::{AfterFault, HostOptions, PluginOptions};
use sim_kit::host::Host as Stage;
use sim_kit::run::{self, Planted};
use sim_kit::theft::{self, ThiefOptions};

use crate::attack::{self, AttackOptions};
use crate::plant::{eat_memory, hog, plant};
use crate::plugin;
use crate::spec::{Kind, Spec};
use crate::stress::{StressOptions, fork_storm, stop_storm};
use crate::wire::Wire;
use crate::witness;

/// A stand-in for ddc: a host and its plugins as real processes, with faults on request
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
    /// Answer every request with its own payload, and obey orders to misbehave
    Plugin(PluginOptions),
    /// List the faults with their variants and lanes
    Faults,
    /// Take one token out of the doorbell of another process
    #[command(hide = true)]
    Thief(ThiefOptions),
    /// Damage and replace a hub, whose processes must be stopped, to try out who reads it
    #[command(hide = true)]
    Attack(AttackOptions),
    /// Make calls whose results are known until stdin ends, and tell whether one was interrupted or differed
    #[command(hide = true)]
    Witness,
    #[command(hide = true)]
    Hog {
        #[arg(long)]
        cpu: Option<u32>,
    },
    #[command(hide = true)]
    EatMemory {
        #[arg(long)]
        bytes: usize,
    },
    #[command(hide = true)]
    ForkStorm,
    #[command(hide = true)]
    StopStorm {
        #[arg(long, value_parser = humantime::parse_duration)]
        longest: Duration,
        #[arg(long)]
        seed: u64,
    },
}

#[derive(Debug, Args)]
struct Host {
    #[command(flatten)]
    options: HostOptions,
    /// Plant a fault; `ddc-sim faults` lists them with their variants and lanes
    #[arg(
        long,
        value_name = "KIND[:peer=N|random][,after=ROUND_TRIPS|random][,variant=V][,lane=host->peer|peer->host][,for=DUR]"
    )]
    fault: Option<Spec>,
    /// Like a large site: 16 plugins, payloads of all sizes, four calls open for each plugin, no end
    #[arg(long)]
    like_ddc: bool,
    /// Hubs in the tree: the others belong to hosts of their own that this one starts
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    hubs: u16,
    #[command(flatten)]
    stress: StressOptions,
}

/// Runs the program.
pub(crate) fn main() -> anyhow::Result<()> {
    match Cli::parse().role {
        Role::Host(host) => run_host(*host),
        Role::Plugin(options) => plugin::run(&options),
        Role::Faults => {
            for kind in Kind::ALL {
                let lanes: Vec<_> = kind.lanes().iter().map(ToString::to_string).collect();
                println!(
                    "{:20} {:24} {}",
                    kind.name(),
                    lanes.join(" "),
                    kind.variants().join(" ")
                );
            }
            Ok(())
        }
        Role::Thief(options) => theft::run(options),
        Role::Attack(options) => attack::run(&options),
        Role::Witness => witness::run(),
        Role::Hog { cpu } => hog(cpu),
        Role::EatMemory { bytes } => eat_memory(bytes),
        Role::ForkStorm => fork_storm(),
        Role::StopStorm { longest, seed } => stop_storm(longest, seed),
    }
}

fn run_host(host: Host) -> anyhow::Result<()> {
    shm_debug::install_sigusr1_handler("ddc-sim").context("preparing to answer SIGUSR1")?;
    let mut options = host.options;
    if host.like_ddc {
        options.plugins = 16;
        options.in_flight = 4;
        options.round_trips = 0;
        options.gap = options.gap.max(Duration::from_millis(2));
        options.payload = "0..256K".parse().map_err(anyhow::Error::msg)?;
    }
    let fault = host.fault;
    if fault
        .as_ref()
        .is_some_and(|spec| spec.kind == Kind::NeverEnqueued)
    {
        // A host that waits for an answer has nothing else to do.
        options.after_fault = AfterFault::Quiet;
    }
    let runtime = options
        .runtime
        .build(options.workers)
        .context("starting the runtime")?;
    let mut others = Vec::new();
    let result = start_others(&options, host.hubs, &mut others).and_then(|()| {
        let stress = host.stress.start(options.seed)?;
        let result = runtime.block_on(run::run::<Wire, _>(options, async move |stage| {
            describe(&stage);
            match fault {
                Some(spec) => plant(stage, spec).await,
                None => Ok(Planted::Nothing),
            }
        }));
        drop(stress);
        result
    });
    child::end_all(&mut others, Duration::from_secs(5));
    // A blocking wait of a lane that hangs must not hold up the end.
    runtime.shutdown_background();
    result
}

/// Adds the hub's state to the answer to SIGUSR1.
fn describe(stage: &Arc<Stage<Wire>>) {
    let stage = Arc::downgrade(stage);
    shm_debug::register_diagnostic(move |out| {
        if let Some(stage) = stage.upgrade() {
            let peers: Vec<_> = stage.seats.iter().map(|seat| seat.peer()).collect();
            let sides = peers.iter().map(|peer| &peer.endpoint.0);
            out.push_str(&host_section(stage.hub.hub(), sides));
        }
    });
}

/// Starts a host with a hub of its own for each further hub.
fn start_others(
    options: &HostOptions,
    hubs: u16,
    others: &mut Vec<std::process::Child>,
) -> anyhow::Result<()> {
    for number in 1..hubs {
        let mut command = Command::new(std::env::current_exe().context("finding our own program")?);
        command.args([
            "host".to_owned(),
            format!("--plugins={}", options.plugins),
            "--round-trips=0".to_owned(),
            format!("--gap={}", humantime::format_duration(options.gap)),
            format!(
                "--payload={}..{}",
                options.payload.low, options.payload.high
            ),
            format!("--in-flight={}", options.in_flight),
            format!("--seed={}", options.seed.wrapping_add(u64::from(number))),
            format!("--ring-capacity={}", options.ring_capacity),
            format!("--runtime={}", options.runtime.as_str()),
            format!("--plugin-runtime={}", options.plugin_runtime.as_str()),
        ]);
        child::die_with_parent(&mut command, &[]);
        others.push(command.spawn().context("starting another host")?);
    }
    Ok(())
}
