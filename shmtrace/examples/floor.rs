//! Attaches programs that do next to nothing where the probes are, so that `cargo xtask bench` can tell what the probes cost
//! from what any tracer costs: `floor sockets-lookup PID...` attaches, says `attached`, and detaches when it is interrupted.

use std::io::Write as _;

use anyhow::{Context as _, Result, bail};
use aya::{
    Btf, Ebpf,
    maps::{Array, HashMap},
    programs::{BtfTracePoint, RawTracePoint, TracePoint},
};
use clap::{Parser, ValueEnum};
use shmtrace::{
    hub::{HubReader, looks_like_a_hub},
    process::Process,
};
use shmtrace_common::PID_SLOTS;
use shmtrace_engine::Direction;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/floor"));

/// Calls that the classic tracepoints are of.
const CALLS: [&str; 5] = ["sendto", "recvfrom", "epoll_wait", "epoll_pwait", "futex"];

/// Attaches programs that do next to nothing
#[derive(Parser)]
struct Floor {
    /// Which
    #[arg(value_enum)]
    kind: Kind,
    /// Processes that are looked for
    pids: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// At the sockets and at `sched_switch`: nothing
    SocketsNothing,
    /// The same, looking whether the process is traced
    SocketsLookup,
    /// The same, with a record if it is
    SocketsRecord,
    /// The same, with the indexes of the ring that it consumes; the first process is the host
    SocketsRing,
    /// At the exit of each call, a tracepoint with types: looking whether the process is traced
    CallsTyped,
    /// The same at the raw tracepoint
    CallsRaw,
    /// The same at the classic tracepoints of five calls
    CallsClassic,
}

fn main() -> Result<()> {
    let floor = Floor::parse();
    if OBJECT.is_empty() {
        bail!("built without a BPF toolchain: `cargo xtask setup` installs it");
    }
    let btf = Btf::from_sys_fs().context("no type information of the kernel")?;
    let mut ebpf = Ebpf::load(OBJECT).context("cannot load the programs")?;
    enter(&mut ebpf, &floor.pids)?;
    match floor.kind {
        Kind::SocketsNothing => at_sockets(&mut ebpf, &btf, "nothing")?,
        Kind::SocketsLookup => at_sockets(&mut ebpf, &btf, "lookup")?,
        Kind::SocketsRecord => at_sockets(&mut ebpf, &btf, "record")?,
        Kind::SocketsRing => {
            enter_rings(&mut ebpf, &floor.pids)?;
            at_sockets(&mut ebpf, &btf, "ring")?;
        }
        Kind::CallsTyped => typed(&mut ebpf, &btf, "sys_exit", "call_typed")?,
        Kind::CallsRaw => {
            let program: &mut RawTracePoint = program(&mut ebpf, "call_raw")?.try_into()?;
            program.load()?;
            program.attach("sys_exit")?;
        }
        Kind::CallsClassic => {
            let program: &mut TracePoint = program(&mut ebpf, "call_classic")?.try_into()?;
            program.load()?;
            for call in CALLS {
                program
                    .attach("syscalls", &format!("sys_exit_{call}"))
                    .with_context(|| {
                        format!("cannot attach to sys_exit_{call}; is tracefs mounted?")
                    })?;
            }
        }
    }
    let mut out = std::io::stdout();
    writeln!(out, "attached").and_then(|()| out.flush())?;
    loop {
        std::thread::park();
    }
}

fn enter(ebpf: &mut Ebpf, pids: &[u32]) -> Result<()> {
    let mut slots: Array<_, u32> = ebpf.map_mut("PIDS").context("no map PIDS")?.try_into()?;
    for pid in pids {
        slots.set(pid % PID_SLOTS, 1, 0)?;
    }
    let mut tree: HashMap<_, u32, u32> = ebpf.map_mut("TREE").context("no map TREE")?.try_into()?;
    for pid in pids {
        tree.insert(pid, 1, 0)?;
    }
    Ok(())
}

/// Tells the programs where each process has the ring that it consumes.
fn enter_rings(ebpf: &mut Ebpf, pids: &[u32]) -> Result<()> {
    let mut rings: Array<_, u64> = ebpf.map_mut("RINGS").context("no map RINGS")?.try_into()?;
    for (number, pid) in pids.iter().enumerate() {
        let consumes = if number == 0 {
            Direction::ToHost
        } else {
            Direction::ToPeer
        };
        let address = ring_of(*pid, consumes).with_context(|| format!("of process {pid}"))?;
        rings.set(pid % PID_SLOTS, address, 0)?;
    }
    Ok(())
}

/// The address of the ring of the first peer in a process.
fn ring_of(pid: u32, direction: Direction) -> Result<u64> {
    let process = Process::open(pid)?;
    let mappings = process.shared_mappings(&mut Vec::new())?;
    let is_hub = |entry: &&_| looks_like_a_hub(&process, entry).is_ok_and(|is_hub| is_hub);
    let entry = mappings.iter().find(is_hub).context("it maps no hub")?;
    let hub = HubReader::open_mapping(&process, entry)?;
    let glance = hub.glance();
    let is_used = |peer: &_| {
        glance
            .peer_entry(*peer)
            .is_some_and(|entry| entry.is_used())
    };
    let peer = hub.peers().find(is_used).context("its hub has no peer")?;
    let ring = hub.ring_offset(peer, direction).context("no such ring")?;
    let offset = ring.checked_sub(entry.offset).context("not mapped")?;
    Ok(entry.start + offset)
}

fn at_sockets(ebpf: &mut Ebpf, btf: &Btf, what: &str) -> Result<()> {
    for (tracepoint, name) in [
        ("sock_send_length", "sent"),
        ("sock_recv_length", "received"),
        ("sched_switch", "switched"),
    ] {
        typed(ebpf, btf, tracepoint, &format!("{what}_{name}"))?;
    }
    Ok(())
}

fn typed(ebpf: &mut Ebpf, btf: &Btf, tracepoint: &str, name: &str) -> Result<()> {
    let program: &mut BtfTracePoint = program(ebpf, name)?.try_into()?;
    program
        .load(tracepoint, btf)
        .with_context(|| format!("the kernel does not take {name}"))?;
    program
        .attach()
        .with_context(|| format!("cannot attach to {tracepoint}"))?;
    Ok(())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::programs::Program> {
    ebpf.program_mut(name)
        .with_context(|| format!("no program {name}"))
}
