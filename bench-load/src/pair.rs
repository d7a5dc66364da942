//! A host and its only plugin.

use std::{
    fs,
    os::fd::{AsFd, FromRawFd as _, OwnedFd},
    path::PathBuf,
    process::Child,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use rapace_peers::shm04::Shm04;
use serde_json::json;
use sim_kit::{
    child::{self, Handover, Plugin},
    cli::{PluginOptions, RuntimeKind},
    lane::{Endpoint as _, Transport},
};

use crate::{micro, number, obey, stay_on, trips::Trips};

/// Which transport a pair speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// `rapace-transport-shm` 0.4
    Rapace,
}

#[derive(Args)]
pub(crate) struct Pair {
    /// Which transport it speaks
    #[arg(long, value_enum, default_value = "rapace")]
    transport: Kind,
    /// Bytes of each request and answer
    #[arg(long, default_value_t = 16)]
    payload: usize,
    /// The host's processor
    #[arg(long)]
    cpu: Option<usize>,
    /// The plugin's processor
    #[arg(long)]
    plugin_cpu: Option<usize>,
    /// A plugin that never looks at its doorbell, for `micro`
    #[arg(long)]
    idle: bool,
    /// Plugins beside it that never look at their doorbells
    #[arg(long, default_value_t = 0)]
    more_plugins: u16,
}

impl Pair {
    pub(crate) fn run(&self) -> Result<()> {
        stay_on(self.cpu)?;
        match self.transport {
            Kind::Rapace => self.run_on::<Shm04>(),
        }
    }

    fn run_on<T: Transport>(&self) -> Result<()> {
        let runtime = RuntimeKind::Current
            .build(0)
            .context("cannot build a runtime")?;
        // The transports make their doorbells within a runtime.
        let entered = runtime.enter();
        let hub = HubFile(PathBuf::from(format!(
            "/tmp/dodeca-hub-{}.shm",
            std::process::id()
        )));
        let handle = T::create_hub(&hub.0, 1 + self.more_plugins, 256)?;
        let peer = T::add_peer(&handle, "dodeca-mod-bench")?;
        let mut plugins = vec![self.start_plugin(&hub, peer.id, peer.plugin_fd, self.idle)?];
        // SAFETY: the transport gave us `plugin_fd` to close, and nothing else in this process refers to it.
        let plugin_end = unsafe { OwnedFd::from_raw_fd(peer.plugin_fd) };
        // Kept, since their hosts' ends are theirs.
        let mut beside = Vec::new();
        for _ in 0..self.more_plugins {
            let peer = T::add_peer(&handle, "dodeca-mod-beside")?;
            plugins.push(self.start_plugin(&hub, peer.id, peer.plugin_fd, true)?);
            // SAFETY: as above.
            drop(unsafe { OwnedFd::from_raw_fd(peer.plugin_fd) });
            beside.push(peer);
        }
        drop(entered);
        let pids: Vec<u32> = plugins.iter().map(|plugin| plugin.0.id()).collect();

        println!(
            "{}",
            json!({"host": std::process::id(), "plugins": pids, "hub": hub.0})
        );
        let mut trips = Trips::new();
        obey(|words| match words {
            ["trips", millis, gap] => {
                let (time, gap) = (
                    Duration::from_millis(number(millis)?),
                    Duration::from_nanos(number(gap)?),
                );
                runtime.block_on(trips.run(&peer.endpoint, self.payload, time, gap))
            }
            ["micro", millis] => {
                let host_end = other_end(&plugin_end)?;
                micro::send_and_receive(&host_end, &plugin_end, number(millis)?)
            }
            _ => bail!("no such measurement: {}", words.join(" ")),
        })
    }

    fn start_plugin(&self, hub: &HubFile, peer: u16, doorbell: i32, idle: bool) -> Result<Running> {
        let own = std::env::current_exe().context("cannot find our own program")?;
        let kind = self
            .transport
            .to_possible_value()
            .context("the transport has no name")?;
        let mut command = vec![
            own.into(),
            "plugin".into(),
            format!("--transport={}", kind.get_name()).into(),
        ];
        command.extend(self.plugin_cpu.map(|cpu| format!("--cpu={cpu}").into()));
        command.extend(idle.then(|| "--idle".into()));
        let name = child::plugin_name(usize::from(peer));
        let plugin = Plugin {
            command: &command,
            name: &name,
            hub: &hub.0,
            peer,
            doorbell,
            handover: Handover::Arguments,
        };
        plugin
            .spawn()
            .map(Running)
            .context("cannot start the plugin")
    }
}

/// Answers every request with its own payload.
pub(crate) fn plugin(kind: Kind, options: &PluginOptions, idle: bool) -> Result<()> {
    sim_kit::plugin::adopt_name();
    match kind {
        Kind::Rapace => answer::<Shm04>(options, idle),
    }
}

fn answer<T: Transport>(options: &PluginOptions, idle: bool) -> Result<()> {
    let runtime = RuntimeKind::Current
        .build(0)
        .context("cannot build a runtime")?;
    runtime.block_on(async {
        let endpoint = T::open(&options.hub_path, options.peer_id, options.doorbell_fd)?;
        if idle {
            loop {
                std::thread::park();
            }
        }
        loop {
            let request = endpoint.recv().await?;
            endpoint.send(request).await?;
        }
    })
}

/// The host's end of the doorbell, found as the socket among our descriptors that is not the plugin's end.
fn other_end(plugin_end: &OwnedFd) -> Result<OwnedFd> {
    let inode_of = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| stat.st_ino);
    let plugin_inode = inode_of(plugin_end)?;
    for entry in fs::read_dir("/proc/self/fd").context("cannot list our descriptors")? {
        let entry = entry?;
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let Some(inode) = target.to_str().and_then(|name| {
            name.strip_prefix("socket:[")?
                .strip_suffix(']')?
                .parse::<u64>()
                .ok()
        }) else {
            continue;
        };
        let number: i32 = entry
            .file_name()
            .to_string_lossy()
            .parse()
            .context("a descriptor is a number")?;
        if inode == plugin_inode || number <= 2 {
            continue;
        }
        // SAFETY: the descriptor was open a moment ago and this process is single-threaded; a borrow for the dup.
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
        let other = borrowed
            .as_fd()
            .try_clone_to_owned()
            .context("cannot duplicate the doorbell")?;
        // The runtime has sockets of its own, of another kind.
        let is_doorbell = rustix::net::sockopt::socket_type(&other)
            .is_ok_and(|kind| kind == rustix::net::SocketType::DGRAM);
        if is_doorbell
            && rustix::net::send(&other, &[1], rustix::net::SendFlags::DONTWAIT).is_ok()
            && rustix::net::recv(plugin_end, &mut [0_u8; 8], rustix::net::RecvFlags::DONTWAIT)
                .is_ok()
        {
            return Ok(other);
        }
    }
    bail!("the host's end of the doorbell is not among our descriptors")
}

/// Removed at the end.
struct HubFile(PathBuf);

impl Drop for HubFile {
    fn drop(&mut self) {
        // Somebody may have removed it before us: then there is nothing left to do.
        let _ = fs::remove_file(&self.0);
    }
}

/// Ended at the end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        child::end_all(std::slice::from_mut(&mut self.0), Duration::from_secs(1));
    }
}
