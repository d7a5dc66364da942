//! `shm-transport` and the published rapace crates, each as host of the other's plugins, in separate processes.
//!
//! This program is the host of the first half and, started again by a rapace host, the plugin of the second. So it
//! has a `main` of its own: cargo's test harness would not accept a plugin's arguments.

use std::env;
use std::error::Error;
use std::fs;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use shm_transport::layout::SlotFields;
use shm_transport::{
    Frame, Hub, HubConfig, HubHost, HubHostPeerTransport, HubPeerTransport, TransportError,
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Messages of each kind, each way.
const MESSAGES: u64 = 100_000;
/// Messages on their way at a time: more than fit into both rings.
const WINDOW: usize = 40;

/// The published peers: name, program, and where their slots' headers have their fields.
const RAPACE: [(&str, &str, SlotFields); 2] = [
    (
        "rapace-transport-shm 0.4.0",
        env!("CARGO_BIN_EXE_rapace-peer-04"),
        SlotFields::STANDARD,
    ),
    (
        "rapace-core 0.5.0",
        env!("CARGO_BIN_EXE_rapace-peer-05"),
        SlotFields::RAPACE_05,
    ),
];

fn main() -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    if let Some(id) = argument("--peer-id=") {
        return runtime.block_on(plugin(id.parse()?));
    }
    println!("\nrunning 4 tests");
    for (name, program, fields) in RAPACE {
        let start = Instant::now();
        runtime.block_on(our_host(program, fields))?;
        println!(
            "test our host, plugins of {name} ... ok ({:?})",
            start.elapsed()
        );
        let start = Instant::now();
        their_host(program)?;
        println!(
            "test our plugins, host of {name} ... ok ({:?})",
            start.elapsed()
        );
    }
    println!("\ntest result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
    runtime.shutdown_background();
    Ok(())
}

fn argument(name: &str) -> Option<String> {
    env::args().find_map(|argument| Some(argument.strip_prefix(name)?.to_owned()))
}

/// Killed with us, whatever happens.
struct Plugin(Child);

impl Drop for Plugin {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

async fn our_host(program: &str, fields: SlotFields) -> Outcome<()> {
    let path = env::temp_dir().join(format!("interop-hub-{}.shm", std::process::id()));
    let config = HubConfig {
        ring_capacity: 16,
        ..HubConfig::default()
    };
    let host = HubHost::new(Hub::create_with(&path, config, fields)?);
    let outcome = drive(&host, program).await;
    fs::remove_file(&path)?;
    outcome
}

async fn drive(host: &Arc<HubHost>, program: &str) -> Outcome<()> {
    let (peer, mut plugin) = start(host, program)?;
    exchange(&peer, |id| (id % 17) as usize, MESSAGES).await?;
    exchange(&peer, |id| 17 + (id % 3_000) as usize, MESSAGES).await?;
    all_free(host)?;

    // Killed in the midst of it, and another in its place.
    let peer = Arc::new(peer);
    let busy = tokio::spawn({
        let peer = Arc::clone(&peer);
        async move { exchange(&peer, |_| 5_000, u64::MAX).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    plugin.0.kill()?;
    plugin.0.wait()?;
    let ended = tokio::time::timeout(Duration::from_secs(20), busy).await??;
    let error = ended.err().ok_or("calls to a dead plugin went well")?;
    if !matches!(error.downcast_ref(), Some(TransportError::PeerGone(_))) {
        return Err(error);
    }
    peer.mark_dead().await;
    all_free(host)?;
    let (peer, _plugin) = start(host, program)?;
    exchange(&peer, |id| (id % 3_000) as usize, 1_000).await?;
    all_free(host)
}

fn start(host: &Arc<HubHost>, program: &str) -> Outcome<(HubHostPeerTransport, Plugin)> {
    let (peer, ticket) = host.add_peer("rapace")?;
    let child = Command::new(program)
        .arg("plugin")
        .args(ticket.args())
        .spawn()?;
    peer.watch(child.id())?;
    Ok((peer, Plugin(child)))
}

/// Sends messages and expects each back, in order, with a window of them on their way.
async fn exchange(
    peer: &HubHostPeerTransport,
    size: impl Fn(u64) -> usize,
    messages: u64,
) -> Outcome<()> {
    let message = |id: u64| Frame::data(id, 3, 7, vec![id as u8; size(id)]);
    let window = tokio::sync::Semaphore::new(WINDOW);
    let sending = async {
        for id in 0..messages {
            window.acquire().await?.forget();
            peer.send(&message(id)).await?;
        }
        Outcome::Ok(())
    };
    let receiving = async {
        for id in 0..messages {
            let answer = tokio::time::timeout(Duration::from_secs(20), peer.recv()).await??;
            if answer.msg_id != id || answer.payload != message(id).payload {
                return Err(format!("message {id} came back as {}", answer.msg_id).into());
            }
            window.add_permits(1);
        }
        Outcome::Ok(())
    };
    tokio::try_join!(sending, receiving).map(|_| ())
}

fn all_free(host: &HubHost) -> Outcome<()> {
    let slots = host.hub().allocator().slot_status().total();
    // A receiver gives a slot back after it has read it, so the last may still be on its way.
    let start = Instant::now();
    while host.hub().allocator().slot_status().total().free != slots.total {
        if start.elapsed() > Duration::from_secs(5) {
            return Err(format!("slots leaked: {slots}").into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn their_host(program: &str) -> Outcome<()> {
    let us = env::current_exe()?;
    let foreign = format!("--plugin-cmd={}", us.display());
    let hub = env::temp_dir().join(format!("interop-theirs-{}.shm", std::process::id()));
    let path = format!("--hub={}", hub.display());
    for payload in ["0..16", "17..3000"] {
        let round_trips = format!("--round-trips={MESSAGES}");
        let payload = format!("--payload={payload}");
        let arguments = [
            "--plugins=2",
            &round_trips,
            &payload,
            "--in-flight=40",
            "--ring-capacity=16",
            "--keep-hub",
            &path,
            &foreign,
        ];
        let output = Command::new(program).arg("host").args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let done: Value = said
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|line| line["event"] == "done")
            .ok_or("their host did not finish")?;
        if done["round_trips"] != MESSAGES || done["mismatched"] != 0 || done["lost"] != 0 {
            return Err(format!("their host counted {done}").into());
        }
        if !output.status.success() {
            return Err("their host failed".into());
        }
        no_slot_left(&hub)?;
        fs::remove_file(&hub)?;
    }
    Ok(())
}

fn no_slot_left(path: &Path) -> Outcome<()> {
    let slots = Hub::open(path)?.allocator().slot_status().total();
    if slots.free != slots.total {
        return Err(format!("slots leaked: {slots}").into());
    }
    Ok(())
}

async fn plugin(id: u16) -> Outcome<()> {
    let path: PathBuf = argument("--hub-path=").ok_or("no --hub-path")?.into();
    let doorbell: RawFd = argument("--doorbell-fd=")
        .ok_or("no --doorbell-fd")?
        .parse()?;
    // SAFETY: the fd was inherited for this and nothing else here knows it.
    let host = unsafe { HubPeerTransport::open(path, id, doorbell) }?;
    loop {
        match host.recv().await {
            Ok(request) => host.send(&request).await?,
            Err(TransportError::HostGone) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
