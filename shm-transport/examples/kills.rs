//! Plugins that are killed at random moments, while all are busy: no slot may leak, no message of another may be lost,
//! and nobody may get stuck.
//!
//! `cargo run --release -p shm-transport --example kills -- 1000` kills a thousand times; the tests run it with less.

use std::error::Error;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, process};

use shm_transport::{
    Frame, HubConfig, HubHost, HubHostPeerTransport, HubPeerTransport, TransportError,
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Plugins at a time; all but the first are killed now and then.
const PLUGINS: u64 = 4;

fn main() -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let outcome = match argument("--peer-id=") {
        Some(id) => runtime.block_on(plugin(id.parse()?)),
        None => runtime.block_on(campaign(
            env::args().nth(1).map_or(Ok(1000), |kills| kills.parse())?,
        )),
    };
    runtime.shutdown_background();
    outcome
}

fn argument(name: &str) -> Option<String> {
    env::args().find_map(|argument| Some(argument.strip_prefix(name)?.to_owned()))
}

/// A small generator, so that a run can be repeated: xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }
}

async fn campaign(kills: u64) -> Outcome<()> {
    let path = env::temp_dir().join(format!("kills-hub-{}.shm", process::id()));
    // Small rings, so that they are often full.
    let config = HubConfig {
        ring_capacity: 8,
        ..HubConfig::default()
    };
    let host = HubHost::create(&path, config)?;
    let done = Arc::new(AtomicBool::new(false));
    let survivor_calls = Arc::new(AtomicU64::new(0));

    let (survivor, mut survivor_child) = start(&host)?;
    let survivor_task = tokio::spawn(calls(
        survivor.clone(),
        1,
        done.clone(),
        survivor_calls.clone(),
    ));

    let mut random = Random(0x5eed);
    let mut lanes = Vec::new();
    for number in 1..PLUGINS {
        lanes.push(tokio::spawn(lane(
            host.clone(),
            kills / (PLUGINS - 1) + u64::from(number <= kills % (PLUGINS - 1)),
            Random(random.below(u64::MAX) | 1),
        )));
    }
    let mut killed = 0;
    for lane in lanes {
        killed += lane.await??;
    }
    done.store(true, Ordering::Relaxed);
    survivor_task.await??;
    survivor_child.kill()?;
    survivor_child.wait()?;
    survivor.mark_dead().await;

    let slots = host.hub().allocator().slot_status().total();
    fs::remove_file(&path)?;
    println!(
        "{killed} kills, {} calls of the plugin that lived, slots: {slots}",
        survivor_calls.load(Ordering::Relaxed)
    );
    if slots.free != slots.total {
        return Err("slots leaked".into());
    }
    Ok(())
}

fn start(host: &Arc<HubHost>) -> Outcome<(Arc<HubHostPeerTransport>, Child)> {
    let (peer, ticket) = host.add_peer("victim")?;
    let child = Command::new(env::current_exe()?)
        .args(ticket.args())
        .spawn()?;
    peer.watch(child.id())?;
    Ok((Arc::new(peer), child))
}

/// Starts plugins one after the other and kills each while calls are on their way.
async fn lane(host: Arc<HubHost>, kills: u64, mut random: Random) -> Outcome<u64> {
    for _ in 0..kills {
        let (peer, mut child) = start(&host)?;
        let (done, count) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let busy = tokio::spawn(calls(peer.clone(), random.below(u64::MAX) | 1, done, count));
        tokio::time::sleep(Duration::from_micros(random.below(30_000))).await;
        child.kill()?;
        child.wait()?;
        match tokio::time::timeout(Duration::from_secs(20), busy).await {
            Err(_) => return Err("the host got stuck with a dead peer".into()),
            Ok(ended) => match ended? {
                Err(error) if matches!(error.downcast_ref(), Some(TransportError::PeerGone(_))) => {
                }
                other => return Err(format!("a dead peer gave {other:?}").into()),
            },
        }
        peer.mark_dead().await;
    }
    Ok(kills)
}

/// Calls with up to four on their way, all sizes mixed; every answer must be the right one, in order.
async fn calls(
    peer: Arc<HubHostPeerTransport>,
    seed: u64,
    done: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
) -> Outcome<()> {
    let mut random = Random(seed);
    let mut id = 0;
    while !done.load(Ordering::Relaxed) {
        let mut sent = Vec::new();
        for _ in 0..=random.below(4) {
            let size = match random.below(4) {
                0 => random.below(17),
                1 => random.below(2_000),
                2 => random.below(20_000),
                _ => random.below(300_000),
            };
            let request = Frame::data(id, 1, 0, vec![id as u8; size as usize]);
            id += 1;
            peer.send(&request).await?;
            sent.push(request);
        }
        for request in sent {
            let start = Instant::now();
            let answer = peer.recv().await?;
            if answer != request {
                return Err(
                    format!("answer {} for request {}", answer.msg_id, request.msg_id).into(),
                );
            }
            if start.elapsed() > Duration::from_secs(20) {
                return Err("an answer took 20 seconds".into());
            }
            count.fetch_add(1, Ordering::Relaxed);
        }
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
