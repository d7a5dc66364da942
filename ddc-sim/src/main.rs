//! A stand-in for `ddc`: a host and its plugins as real processes, with faults on request.
//!
//! The host creates a hub, starts plugins as `ddc` does, and makes calls to them. A fault is asked for with
//! `--fault`, is planted from outside the transport ([`raw`], [`bell`]) or by a plugin that is ordered to misbehave
//! ([`order`], [`plugin`]), and is reported on stdout once it is really there.
//!
//! ```text
//! ddc-sim host --plugins 4 --calls 100000 --payload 0..64K      # healthy; ends by itself
//! ddc-sim host --like-ddc --restart-every 10s                   # healthy; ends with SIGTERM
//! ddc-sim host --calls 0 --gap 1ms --fault consumed-then-slept:peer=2,after=6
//! ddc-sim host --calls 0 --fault stolen:peer=random,after=random,lane=peer->host --fault-hold 5s
//! ddc-sim faults                                                # kinds, lanes, variants
//! ```
//!
//! stdout has one JSON object a line: `host`, `plugin` (peer, pid, name), `ready`, `fault` (kind, peer, lane,
//! `mono_ns` of `CLOCK_MONOTONIC`, pid), `healed`, `progress` (on SIGUSR2) and `done`, named by `event`. SIGUSR1 is
//! answered on stderr, as `ddc` does.

mod attack;
mod bell;
mod cli;
mod group;
mod order;
mod plant;
mod plugin;
mod raw;
mod spec;
mod stress;
mod wire;
mod witness;

fn main() -> anyhow::Result<()> {
    cli::main()
}
