//! The options that all stand-ins have, and the runtimes they choose between.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::runtime::{Builder, Runtime};

use crate::child::Handover;
use crate::traffic::Sizes;

/// Which tokio runtime a process runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RuntimeKind {
    /// Worker threads: `ddc` itself.
    Multi,
    /// Everything on one thread: most plugins.
    Current,
}

impl RuntimeKind {
    /// Builds it; `workers` 0 leaves their number to tokio.
    pub fn build(self, workers: usize) -> std::io::Result<Runtime> {
        let mut builder = match self {
            Self::Multi => Builder::new_multi_thread(),
            Self::Current => Builder::new_current_thread(),
        };
        if workers > 0 {
            builder.worker_threads(workers);
        }
        builder.enable_all().build()
    }

    /// The name as the command line takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Multi => "multi",
            Self::Current => "current",
        }
    }
}

/// What the rest of the tree does once a fault is in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AfterFault {
    /// No more calls anywhere: everybody sleeps, as in a hung build.
    Quiet,
    /// Calls to the other peers go on.
    Continue,
}

/// The traffic and the processes of a host.
#[derive(Debug, Clone, Args)]
pub struct HostOptions {
    /// Number of plugins
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(0..=32))]
    pub plugins: u16,
    /// Round trips over all plugins; 0 goes on until a signal
    #[arg(long, visible_alias = "calls", default_value_t = 1000)]
    pub round_trips: u64,
    /// Mean pause of each caller between two calls
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    pub gap: Duration,
    /// Payload size, or a range of sizes such as 0..64K
    #[arg(long, default_value = "16")]
    pub payload: Sizes,
    /// Callers of each plugin, each with one call open at a time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub in_flight: u16,
    /// Seed of sizes, pauses and random moments
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The host's runtime
    #[arg(long, value_enum, default_value_t = RuntimeKind::Multi)]
    pub runtime: RuntimeKind,
    /// Worker threads of the host's runtime; 0: as many as processors
    #[arg(long, default_value_t = 0)]
    pub workers: usize,
    /// The plugins' runtime
    #[arg(long, value_enum, default_value_t = RuntimeKind::Current)]
    pub plugin_runtime: RuntimeKind,
    /// The hub file [default: /tmp/dodeca-hub-PID.shm]
    #[arg(long)]
    pub hub: Option<PathBuf>,
    /// Descriptors in each ring, a power of two
    #[arg(long, default_value_t = 256)]
    pub ring_capacity: u32,
    /// End after this time, even if calls are left
    #[arg(long, value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
    /// Wait between the start of the plugins and the first call
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    pub start_delay: Duration,
    /// Once the plugins are there, wait for a line on stdin before the first call: whoever sends it is ready to watch
    #[arg(long)]
    pub start_on_line: bool,
    /// A foreign plugin to start instead of our own (words split at spaces)
    #[arg(long)]
    pub plugin_cmd: Option<String>,
    /// Hand hub, peer and doorbell over in the environment (`SIM_HUB_PATH`, `SIM_PEER_ID`, `SIM_DOORBELL_FD`), where no
    /// command line shows them
    #[arg(long)]
    pub no_args: bool,
    /// Leave the hub file behind
    #[arg(long)]
    pub keep_hub: bool,
    /// Kill and restart one plugin after another at this interval
    #[arg(long, value_parser = humantime::parse_duration)]
    pub restart_every: Option<Duration>,
    /// What the rest does once a fault is in place
    #[arg(long, value_enum, default_value_t = AfterFault::Quiet)]
    pub after_fault: AfterFault,
    /// End this long after the fault is in place [default: stay until a signal]
    #[arg(long, value_parser = humantime::parse_duration)]
    pub fault_hold: Option<Duration>,
    /// Heal the fault this long after it is in place: a later, unrelated ring wakes the sleeper
    #[arg(long, value_parser = humantime::parse_duration)]
    pub heal_after: Option<Duration>,
}

impl HostOptions {
    /// The hub file of this process.
    pub fn hub_path(&self) -> PathBuf {
        let default = || PathBuf::from(format!("/tmp/dodeca-hub-{}.shm", std::process::id()));
        self.hub.clone().unwrap_or_else(default)
    }

    /// How plugins are told who they are.
    pub fn handover(&self) -> Handover {
        if self.no_args {
            Handover::Environment
        } else {
            Handover::Arguments
        }
    }

    /// Program and leading arguments of a plugin.
    pub fn plugin_command(&self) -> std::io::Result<Vec<OsString>> {
        if let Some(command) = &self.plugin_cmd {
            return Ok(command.split_whitespace().map(OsString::from).collect());
        }
        // The link outlives a rebuild of the program, which its target's path would not.
        let own = std::env::current_exe()?;
        let runtime = format!("--runtime={}", self.plugin_runtime.as_str());
        Ok(vec![own.into(), "plugin".into(), runtime.into()])
    }
}

/// What a plugin is told by its host.
#[derive(Debug, Clone, Args)]
pub struct PluginOptions {
    /// The hub file
    #[arg(long, env = "SIM_HUB_PATH")]
    pub hub_path: PathBuf,
    /// Our peer id
    #[arg(long, env = "SIM_PEER_ID")]
    pub peer_id: u16,
    /// Our end of the doorbell
    #[arg(long, env = "SIM_DOORBELL_FD")]
    pub doorbell_fd: i32,
    /// Our runtime
    #[arg(long, value_enum, default_value_t = RuntimeKind::Current)]
    pub runtime: RuntimeKind,
}
