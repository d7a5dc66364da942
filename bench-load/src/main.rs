//! The loads that `cargo xtask bench` measures: one process, or a host with its plugin, told over stdin what to do.
//!
//! Each line on stdin is one measurement, each answer one JSON object on stdout, so that the same processes can be
//! measured with and without a tracer in turn. Nothing is printed or allocated while a measurement runs.

mod micro;
mod pair;
mod trips;

use std::io::{BufRead as _, Write as _};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use serde_json::Value;
use sim_kit::cli::PluginOptions;

/// The loads that `cargo xtask bench` measures
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    load: Load,
}

#[derive(Subcommand)]
enum Load {
    /// A host and one plugin: `trips MILLIS GAP_NS`, `micro MILLIS`
    Pair(pair::Pair),
    /// A process by itself: `getppid MILLIS`, `sendrecv MILLIS`
    Alone(Alone),
    /// The plugin of a pair
    Plugin(Plugin),
}

#[derive(clap::Args)]
struct Alone {
    /// The processor to stay on
    #[arg(long)]
    cpu: Option<usize>,
}

#[derive(clap::Args)]
struct Plugin {
    #[command(flatten)]
    options: PluginOptions,
    /// Which transport it speaks
    #[arg(long, value_enum)]
    transport: pair::Kind,
    /// The processor to stay on
    #[arg(long)]
    cpu: Option<usize>,
    /// Enter the hub and never look at it again
    #[arg(long)]
    idle: bool,
}

fn main() -> Result<()> {
    match Cli::parse().load {
        Load::Pair(pair) => pair.run(),
        Load::Plugin(plugin) => {
            stay_on(plugin.cpu)?;
            pair::plugin(plugin.transport, &plugin.options, plugin.idle)
        }
        Load::Alone(alone) => {
            stay_on(alone.cpu)?;
            let (here, there) = micro::socketpair()?;
            obey(|words| match words {
                ["getppid", millis] => Ok(micro::getppid(number(millis)?)),
                ["sendrecv", millis] => micro::send_and_receive(&here, &there, number(millis)?),
                _ => bail!("no such measurement: {}", words.join(" ")),
            })
        }
    }
}

/// Measures line by line, until stdin ends.
fn obey(mut measure: impl FnMut(&[&str]) -> Result<Value>) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let line = line.context("cannot read what to measure")?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let result = measure(&words)?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{result}")
            .and_then(|()| out.flush())
            .context("cannot tell the result")?;
    }
    Ok(())
}

fn number(word: &str) -> Result<u64> {
    word.parse()
        .with_context(|| format!("{word:?} is not a number"))
}

/// Keeps the calling thread, and what it starts, on one processor.
fn stay_on(cpu: Option<usize>) -> Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set)
        .with_context(|| format!("cannot stay on processor {cpu}"))
}
