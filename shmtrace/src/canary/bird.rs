//! The canary's processes: a host that publishes and rings on order, and a plugin that takes the first signal of each
//! round and does not look for what it announces.

use std::{
    io::{self, Read as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::Arc,
};

use rustix::process::{Signal, set_parent_process_death_signal};
use shm_transport::{Frame, HubConfig, HubHost, HubHostPeerTransport, HubPeerTransport};

use super::Order;
use crate::rights;

/// The first arguments of these processes.
pub(super) const HOST: &str = "internal-canary";
const PLUGIN: &str = "internal-canary-plugin";

/// The smallest hub: one peer, and more entries than are ever in it.
const CONFIG: HubConfig = HubConfig {
    max_peers: 1,
    ring_capacity: 8,
};

/// Is a part of a canary, if this process was started as one.
pub fn as_canary() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let first = args.next()?;
    let done = if first == HOST {
        host(&PathBuf::from(args.next()?))
    } else if first == PLUGIN {
        let text = |arg: std::ffi::OsString, name: &str| {
            Some(arg.to_str()?.strip_prefix(name)?.to_owned())
        };
        let path = text(args.next()?, "--hub-path=")?;
        let id = text(args.next()?, "--peer-id=")?.parse().ok()?;
        let fd = text(args.next()?, "--doorbell-fd=")?.parse().ok()?;
        plugin(Path::new(&path), id, fd)
    } else {
        return None;
    };
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

/// What its orders have made it do so far.
struct Stage {
    _host: Arc<HubHost>,
    peer: HubHostPeerTransport,
    _plugin: Child,
}

fn host(path: &Path) -> anyhow::Result<()> {
    let _only_a_name = rustix::thread::set_name(c"shmtrace-canary");
    rights::give_up_all()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut stage = None;
    let obeyed = obey(&runtime, path, &mut stage);
    if stage.is_some() {
        let _gone_already = std::fs::remove_file(path);
    }
    obeyed
}

fn obey(
    runtime: &tokio::runtime::Runtime,
    path: &Path,
    stage: &mut Option<Stage>,
) -> anyhow::Result<()> {
    let _entered = runtime.enter();
    let mut number = 0;
    let mut byte = [0];
    // Asleep in this read is how the host waits: no wakeup is still to come from it.
    while io::stdin().lock().read(&mut byte)? == 1 {
        match (Order::of(byte[0]), &stage) {
            (Some(Order::Begin), None) => *stage = Some(begin(path)?),
            (Some(Order::Plant), Some(stage)) => {
                number += 1;
                let frame = Frame::data(number, 1, 0, Vec::new());
                runtime.block_on(stage.peer.send(&frame))?;
            }
            (Some(Order::Heal), Some(stage)) => {
                stage.peer.doorbell().ring()?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn begin(path: &Path) -> anyhow::Result<Stage> {
    let host = HubHost::create(path, CONFIG)?;
    let (peer, ticket) = host.add_peer("canary")?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("shmtrace-canary")
        .arg(PLUGIN)
        .args(ticket.args());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let dies_with_host = || Ok(set_parent_process_death_signal(Some(Signal::KILL))?);
    // SAFETY: runs in the forked child, and makes one system call.
    unsafe { command.pre_exec(dies_with_host) };
    let plugin = command.spawn()?;
    drop(ticket);
    Ok(Stage {
        _host: host,
        peer,
        _plugin: plugin,
    })
}

fn plugin(path: &Path, id: u16, fd: i32) -> anyhow::Result<()> {
    let _only_a_name = rustix::thread::set_name(c"shmtrace-canary");
    rights::give_up_all()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // SAFETY: inherited for this purpose, and nothing else here knows of it.
        let transport = unsafe { HubPeerTransport::open(path, id, fd) }?;
        let ring = transport.hub().recv_ring(id)?;
        loop {
            transport.doorbell().wait().await?;
            // The token is gone, and what it announced is not looked for: this is the lost wakeup.
            transport.doorbell().wait().await?;
            while ring.dequeue().is_some() {}
        }
    })
}
