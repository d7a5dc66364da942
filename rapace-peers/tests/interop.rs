//! `shm-transport` and the published rapace crates, each as host of the other's plugins, in separate processes.
//!
//! This program is the host of the first half and, started again by a rapace host, the plugin of the second. So it
//! has a `main` of its own: cargo's test harness would not accept a plugin's arguments.

use std::env;
use std::error::Error;
use std::fs;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use shm_transport::layout::SlotFields;
use shm_transport::{
    Frame, Hub, HubConfig, HubHost, HubHostPeerTransport, HubPeerTransport, SlotError, SlotRef,
    TransportError,
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Messages of each kind, each way.
const MESSAGES: u64 = 100_000;
/// Descriptors in a ring.
const RING: u32 = 16;
/// Messages on their way at a time: more than fit into both rings.
const WINDOW: usize = 40;
/// Plugins that are killed.
const KILLS: u64 = 10;
/// So long that nothing healthy takes it, even on a busy machine.
const LONG: Duration = Duration::from_secs(20);

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
        ring_capacity: RING,
        ..HubConfig::default()
    };
    let host = HubHost::new(Hub::create_with(&path, config, fields)?);
    let outcome = drive(&host, program).await;
    fs::remove_file(&path)?;
    outcome
}

async fn drive(host: &Arc<HubHost>, program: &str) -> Outcome<()> {
    {
        let (peer, _plugin) = start(host, program)?;
        exchange(&peer, WINDOW, |id| (id % 17) as usize, MESSAGES).await?;
        exchange(&peer, WINDOW, |id| 17 + (id % 3_000) as usize, MESSAGES).await?;
        all_free(host)?;
        for size in [8, 800] {
            for _ in 0..20 {
                full_rings(host, &peer, size).await?;
            }
        }
        full_classes(host, &peer).await?;
        all_free(host)?;
    }
    kills(host, program).await
}

/// Fills both rings to the brim, with one message more in the plugin's hands, and takes them all back.
async fn full_rings(host: &HubHost, peer: &HubHostPeerTransport, size: usize) -> Outcome<()> {
    let (to_peer, to_host) = (
        host.hub().recv_ring(peer.peer_id())?,
        host.hub().send_ring(peer.peer_id())?,
    );
    let messages = u64::from(2 * RING + 1);
    for id in 0..messages {
        let frame = Frame::data(id, 3, 7, vec![id as u8; size]);
        tokio::time::timeout(LONG, peer.send(&frame)).await??;
    }
    let start = Instant::now();
    while [&to_peer, &to_host].map(|ring| ring.ring_status().len) != [u64::from(RING); 2] {
        if start.elapsed() > LONG {
            return Err("the rings were not filled".into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let one_more = Frame::data(messages, 3, 7, vec![0; size]);
    if tokio::time::timeout(Duration::from_millis(5), peer.send(&one_more))
        .await
        .is_ok()
    {
        return Err("a full ring took another message".into());
    }
    for id in 0..messages {
        let answer = tokio::time::timeout(LONG, peer.recv()).await??;
        if (answer.msg_id, answer.payload) != (id, vec![id as u8; size]) {
            return Err(format!("message {id} came back as {}", answer.msg_id).into());
        }
    }
    Ok(())
}

/// Exchanges with the smallest class in use by others, then with one slot in all for both sides, then with none.
async fn full_classes(host: &HubHost, peer: &HubHostPeerTransport) -> Outcome<()> {
    /// Nobody's id.
    const OTHERS: u32 = 0x7777;
    let allocator = host.hub().allocator();
    let mut held = Vec::new();
    while held.last().is_none_or(|slot: &SlotRef| slot.class == 0) {
        held.push(allocator.alloc(17, OTHERS)?);
    }
    exchange(peer, WINDOW, |id| 17 + (id % 900) as usize, 5_000).await?;
    loop {
        match allocator.alloc(17, OTHERS) {
            Ok(slot) => held.push(slot),
            Err(SlotError::Exhausted(_)) => break,
            Err(error) => return Err(error.into()),
        }
    }
    allocator.free_unsent(held.pop().ok_or("no slots")?)?;
    // A plugin of rapace gives up without a slot, so one message at a time.
    exchange(peer, 1, |id| 17 + (id % 900) as usize, 2_000).await?;
    held.push(allocator.alloc(17, OTHERS)?);
    let last = Frame::data(9, 3, 7, vec![9; 100]);
    {
        let mut waiting = std::pin::pin!(peer.send(&last));
        let early = tokio::time::timeout(Duration::from_millis(20), waiting.as_mut()).await;
        if early.is_ok() {
            return Err("a message was sent without a slot".into());
        }
        allocator.free_unsent(held.pop().ok_or("no slots")?)?;
        tokio::time::timeout(LONG, waiting).await??;
    }
    if tokio::time::timeout(LONG, peer.recv()).await?? != last {
        return Err("another message came back".into());
    }
    for slot in held {
        allocator.free_unsent(slot)?;
    }
    Ok(())
}

/// Plugins killed in the midst of it, and others in their places, while one lives and is busy throughout.
async fn kills(host: &Arc<HubHost>, program: &str) -> Outcome<()> {
    let (survivor, _plugin) = start(host, program)?;
    let done = Arc::new(AtomicBool::new(false));
    let surviving = tokio::spawn({
        let done = Arc::clone(&done);
        async move {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                exchange(&survivor, 4, |id| (id % 3_000) as usize, 500).await?;
                rounds += 1;
            }
            Outcome::Ok((survivor, rounds))
        }
    });
    for turn in 0..KILLS {
        let (peer, mut plugin) = start(host, program)?;
        let peer = Arc::new(peer);
        let busy = tokio::spawn({
            let peer = Arc::clone(&peer);
            async move { exchange(&peer, WINDOW, |id| (id % 5_000) as usize, u64::MAX).await }
        });
        tokio::time::sleep(Duration::from_millis(20 + 7 * turn)).await;
        plugin.0.kill()?;
        plugin.0.wait()?;
        let ended = tokio::time::timeout(LONG, busy).await??;
        let error = ended.err().ok_or("calls to a dead plugin went well")?;
        if !matches!(error.downcast_ref(), Some(TransportError::PeerGone(_))) {
            return Err(error);
        }
        peer.mark_dead().await;
    }
    done.store(true, Ordering::Relaxed);
    let (_survivor, rounds) = tokio::time::timeout(LONG, surviving).await???;
    if rounds == 0 {
        return Err("the plugin that lived was not served".into());
    }
    // What a dead one had in its hands while the other, which does not say what it has, was busy.
    let start = Instant::now();
    while all_free(host).is_err() && start.elapsed() < LONG {
        host.recover_slots();
    }
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
    window: usize,
    size: impl Fn(u64) -> usize,
    messages: u64,
) -> Outcome<()> {
    let message = |id: u64| Frame::data(id, 3, 7, vec![id as u8; size(id)]);
    let window = tokio::sync::Semaphore::new(window);
    let sending = async {
        for id in 0..messages {
            window.acquire().await?.forget();
            peer.send(&message(id)).await?;
        }
        Outcome::Ok(())
    };
    let receiving = async {
        for id in 0..messages {
            let answer = tokio::time::timeout(LONG, peer.recv()).await??;
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
    let all = format!("--round-trips={MESSAGES}");
    for payload in ["--payload=0..16", "--payload=17..3000"] {
        let run = theirs(program, &[payload, &all, "--plugins=2", "--in-flight=40"])?;
        if run.done["round_trips"] != MESSAGES || run.done["lost"] != 0 {
            return Err(format!("their host counted {}", run.done).into());
        }
    }
    // Plugins killed and replaced. Inline: what a rapace host had sent to a dead plugin in slots it never frees, and
    // with peer 0 it frees what is on its way to others.
    let run = theirs(
        program,
        &[
            "--payload=0..16",
            "--round-trips=0",
            "--plugins=3",
            "--in-flight=20",
            "--restart-every=100ms",
            "--duration=2500ms",
        ],
    )?;
    if run.done["restarts"].as_u64() < Some(KILLS) || run.done["round_trips"].as_u64() < Some(1000)
    {
        return Err(format!("their host counted {}", run.done).into());
    }
    // More calls than slots: both sides run out of them. With two calls each, no plugin can wait for a slot while the
    // others' requests hold all four.
    let run = theirs(
        program,
        &[
            "--payload=5M",
            "--round-trips=150",
            "--plugins=3",
            "--in-flight=2",
        ],
    )?;
    if run.done["round_trips"] != 150 || !run.largest_were_all_in_use {
        return Err(format!("their host counted {}", run.done).into());
    }
    Ok(())
}

/// What came of a run of their host.
struct Run {
    done: Value,
    largest_were_all_in_use: bool,
}

/// Runs their host with plugins of ours to its end; every answer must be right and every slot free.
fn theirs(program: &str, arguments: &[&str]) -> Outcome<Run> {
    let hub = env::temp_dir().join(format!("interop-theirs-{}.shm", std::process::id()));
    let mut host = Command::new(program)
        .arg("host")
        .args(arguments)
        .args([format!("--ring-capacity={RING}"), "--keep-hub".into()])
        .arg(format!("--hub={}", hub.display()))
        .arg(format!("--plugin-cmd={}", env::current_exe()?.display()))
        .stdout(Stdio::piped())
        .spawn()?;
    let out = host.stdout.take().ok_or("no stdout")?;
    let reading = std::thread::spawn(move || std::io::read_to_string(out));
    let mut largest_were_all_in_use = false;
    let status = loop {
        if let Some(status) = host.try_wait()? {
            break status;
        }
        // Not there at first.
        if let Ok(hub) = Hub::open(&hub) {
            let slots = hub.allocator().slot_status();
            largest_were_all_in_use |= slots.classes.last().is_some_and(|class| class.free == 0);
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let said = reading.join().map_err(|_| "the reader failed")??;
    let done: Value = said
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|line| line["event"] == "done")
        .ok_or("their host did not finish")?;
    if !status.success() || done["mismatched"] != 0 || done["unexpected"] != 0 {
        return Err(format!("their host failed ({status}): {done}").into());
    }
    no_slot_left(&hub)?;
    fs::remove_file(&hub)?;
    Ok(Run {
        done,
        largest_were_all_in_use,
    })
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
