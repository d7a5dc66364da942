//! A stand-in for `ddc`: a host and its plugins as real processes, with faults on request.
//!
//! The host creates a hub, starts plugins as `ddc` does, and makes calls to them. A fault is asked for with
//! `--fault`, is planted from outside the transport ([`raw`], [`bell`]) or by a plugin that is ordered to misbehave
//! ([`order`], [`plugin`]), and is reported on stdout once it is really there.

mod bell;
mod cli;
mod order;
mod plant;
mod plugin;
mod raw;
mod spec;
mod stress;
mod wire;

fn main() -> anyhow::Result<()> {
    cli::main()
}
