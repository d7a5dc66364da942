//! The canary's processes: a host that publishes and rings on order, and a plugin that takes every signal, but of the messages
//! only those of rounds that are over.

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

/// The methods of its messages: one whose wakeup is to be lost, and one that ends the round and has both taken. What the plugin
/// does follows from them alone, so that no signal too many or too few (a process may have been stopped) puts it out of step.
const LOSE: u32 = 0;
const HEAL: u32 = 1;

/// What its orders have made it do so far.
struct Stage {
    _host: Arc<HubHost>,
    peer: HubHostPeerTransport,
    _plugin: Child,
    /// The hub's, as long as it has one.
    name: Option<Name>,
    messages: u64,
}

/// A file's name, removed with this.
struct Name(PathBuf);

impl Drop for Name {
    fn drop(&mut self) {
        let _gone_already = std::fs::remove_file(&self.0);
    }
}

fn host(path: &Path) -> anyhow::Result<()> {
    let _only_a_name = rustix::thread::set_name(c"shmtrace-canary");
    rights::give_up_all()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let _entered = runtime.enter();
    let mut stage = None;
    let mut byte = [0];
    // Asleep in this read is how the host waits: no wakeup is still to come from it.
    while io::stdin().lock().read(&mut byte)? == 1 {
        match (Order::of(byte[0]), &mut stage) {
            (Some(Order::Begin), None) => stage = Some(begin(path)?),
            (Some(Order::Hide), Some(stage)) => stage.name = None,
            (Some(Order::Plant), Some(stage)) => runtime.block_on(stage.send(LOSE))?,
            (Some(Order::Heal), Some(stage)) => runtime.block_on(stage.send(HEAL))?,
            _ => {}
        }
    }
    Ok(())
}

impl Stage {
    async fn send(&mut self, method: u32) -> anyhow::Result<()> {
        self.messages += 1;
        let frame = Frame::data(self.messages, 1, method, Vec::new());
        self.peer.send(&frame).await?;
        // Behind others the transport may save the signal, since a plugin that looks needs none.
        self.peer.doorbell().ring()?;
        Ok(())
    }
}

fn begin(path: &Path) -> anyhow::Result<Stage> {
    // The number in it is our watch's: who had it before, and could not remove it, is gone.
    let name = Name(path.to_owned());
    let _none_left = std::fs::remove_file(path);
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
        name: Some(name),
        messages: 0,
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
            let waiting = ring.ring_status();
            let mut indexes = (waiting.tail..waiting.visible_head).rev();
            // What came since the last round ended is not looked for, and its token is gone: this is the lost wakeup.
            if let Some(end) = indexes.find(|index| ring.read_slot(*index).method_id == HEAL) {
                for _ in waiting.tail..=end {
                    ring.dequeue();
                }
            }
        }
    })
}
