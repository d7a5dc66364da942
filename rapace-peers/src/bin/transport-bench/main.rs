//! `shm-transport` and `rapace-transport-shm` 0.4.0 side by side: the same processes, runtimes and processors, in turns.
//!
//! `transport-bench [--turns N] [--rounds N] [--output FILE]` prints a report in Markdown. Each measurement has a host
//! and a plugin process of its own, each with a current-thread runtime.

mod cpu;
mod report;
mod wire;

use std::io::Write as _;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use serde_json::{Value, json};
use tempfile::TempDir;

use wire::{Host, Plugin};

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,
    /// Turns of each measurement; the report has the median of them
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// Round trips of a turn
    #[arg(long, default_value_t = 20_000)]
    rounds: u64,
    /// Where the report goes, beside the terminal
    #[arg(long)]
    output: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// One measurement, as the host of its plugin (started by the program itself)
    Host {
        #[arg(long)]
        wire: Wire,
        #[arg(long)]
        load: Load,
        #[arg(long)]
        rounds: u64,
        /// Processors of host and plugin
        #[arg(long, value_delimiter = ',')]
        cpus: Vec<usize>,
    },
    /// The plugin of a measurement
    Plugin {
        #[arg(long)]
        wire: Wire,
        #[arg(long)]
        load: Load,
        #[arg(long)]
        cpu: usize,
        #[arg(long)]
        hub_path: PathBuf,
        #[arg(long)]
        peer_id: u16,
        #[arg(long)]
        doorbell_fd: RawFd,
    },
}

/// Whose transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wire {
    Ours,
    Rapace,
}

/// What goes over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Load {
    /// Round trips of 8 bytes
    Small,
    /// Round trips of 1 MiB
    Large,
    /// Messages of 8 bytes one way, as fast as they go
    Stream,
}

impl Load {
    fn payload(self) -> Vec<u8> {
        vec![7; if self == Self::Large { 1 << 20 } else { 8 }]
    }
}

/// The last message of a stream: it is answered.
const LAST: u32 = 99;

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
    };
    match cli.role {
        Some(Role::Host {
            wire,
            load,
            rounds,
            cpus,
        }) => runtime()?.block_on(host(wire, load, rounds, &cpus)),
        Some(Role::Plugin {
            wire,
            load,
            cpu,
            hub_path,
            peer_id,
            doorbell_fd,
        }) => {
            cpu::pin(cpu)?;
            runtime()?.block_on(async {
                let plugin = Plugin::open(wire, &hub_path, peer_id, doorbell_fd)?;
                serve(&plugin, load).await
            })
        }
        None => {
            let text = report::run(cli.turns, cli.rounds)?;
            print!("{text}");
            if let Some(path) = cli.output {
                std::fs::write(&path, text)
                    .with_context(|| format!("writing {}", path.display()))?;
            }
            Ok(())
        }
    }
}

async fn host(wire: Wire, load: Load, rounds: u64, cpus: &[usize]) -> anyhow::Result<()> {
    let [host_cpu, plugin_cpu] = *cpus else {
        anyhow::bail!("--cpus wants two numbers");
    };
    cpu::pin(host_cpu)?;
    let _spinners = (host_cpu != plugin_cpu)
        .then(|| cpu::Spinners::start(cpus))
        .transpose()?;
    let folder = TempDir::new()?;
    let (host, arguments) = Host::create(wire, &folder.path().join("hub.shm"))?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("plugin")
        .arg(format!("--wire={}", name(&wire)))
        .arg(format!("--load={}", name(&load)))
        .arg(format!("--cpu={plugin_cpu}"))
        .args(arguments)
        .spawn()?;
    let measured = measure(&host, load, rounds).await;
    child.kill()?;
    child.wait()?;
    let mut out = std::io::stdout();
    writeln!(out, "{}", measured?)?;
    Ok(())
}

async fn measure(host: &Host, load: Load, rounds: u64) -> anyhow::Result<Value> {
    let payload = load.payload();
    // The first ones find cold pages.
    for id in 0..100.min(rounds) {
        host.send(id, LAST, &payload).await?;
        host.recv().await?;
    }
    if load == Load::Stream {
        let start = Instant::now();
        for id in 1..rounds {
            host.send(id, 1, &payload).await?;
        }
        host.send(rounds, LAST, &payload).await?;
        host.recv().await?;
        let nanos = start.elapsed().as_nanos() as f64;
        return Ok(json!({ "per_message_ns": nanos / rounds.max(1) as f64 }));
    }
    let mut times = Vec::with_capacity(rounds as usize);
    for id in 0..rounds {
        let start = Instant::now();
        host.send(id, LAST, &payload).await?;
        ensure!(host.recv().await? == payload.len(), "a wrong answer");
        times.push(start.elapsed().as_nanos() as u64);
    }
    times.sort_unstable();
    let at = |share: f64| times.get((times.len() as f64 * share) as usize);
    Ok(json!({ "p50_ns": at(0.5), "p99_ns": at(0.99) }))
}

async fn serve(plugin: &Plugin, load: Load) -> anyhow::Result<()> {
    loop {
        let (id, method, payload) = plugin.recv().await?;
        if load != Load::Stream || method == LAST {
            plugin.send(id, payload).await?;
        }
    }
}

/// As the command line says it.
fn name(value: &impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Who counts system calls. Perf leaves the processes' timing as it is; strace, which every machine has, slows them so
/// much that they find each other's messages without sleeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counter {
    Perf,
    Strace,
}

impl Counter {
    fn command(self, counts: &Path) -> Command {
        let (program, arguments) = match self {
            Self::Perf => (
                "perf",
                &["stat", "-x,", "-e", "raw_syscalls:sys_enter", "-o"][..],
            ),
            Self::Strace => ("strace", &["-f", "-c", "-U", "calls,name", "-o"][..]),
        };
        let mut command = Command::new(program);
        command.args(arguments).arg(counts);
        command
    }
}

/// One measurement in processes of its own, their system calls counted into a file if wanted.
fn measurement(
    wire: Wire,
    load: Load,
    rounds: u64,
    cpus: [usize; 2],
    counter: Option<(Counter, &Path)>,
) -> anyhow::Result<Value> {
    let own = std::env::current_exe()?;
    let mut command = match counter {
        None => Command::new(own),
        Some((counter, counts)) => {
            let mut command = counter.command(counts);
            command.arg(own);
            command
        }
    };
    let output = command
        .arg("host")
        .arg(format!("--wire={}", name(&wire)))
        .arg(format!("--load={}", name(&load)))
        .arg(format!("--rounds={rounds}"))
        .arg(format!("--cpus={},{}", cpus[0], cpus[1]))
        .stderr(Stdio::inherit())
        .output()
        .context("starting a measurement")?;
    ensure!(output.status.success(), "a measurement failed");
    Ok(serde_json::from_slice(&output.stdout)?)
}
