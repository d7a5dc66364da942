//! A host and its plugin as two processes: the plugin sends everything back.
//!
//! `cargo run --release -p shm-transport --example echo`

use std::error::Error;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;
use std::{env, fs, process};

use shm_transport::{Frame, HubConfig, HubHost, HubPeerTransport, TransportError, host_section};

/// Messages of each size.
const ROUNDS: u64 = 10_000;

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // A plugin is started with its place in the hub on the command line.
    match argument("--peer-id=") {
        Some(id) => runtime.block_on(plugin(id.parse()?)),
        None => runtime.block_on(host()),
    }
}

fn argument(name: &str) -> Option<String> {
    env::args().find_map(|argument| Some(argument.strip_prefix(name)?.to_owned()))
}

async fn host() -> Result<(), Box<dyn Error>> {
    let path = env::temp_dir().join(format!("echo-hub-{}.shm", process::id()));
    let host = HubHost::create(&path, HubConfig::default())?;
    let (peer, ticket) = host.add_peer("echo")?;
    let mut child = Command::new(env::current_exe()?)
        .args(ticket.args())
        .spawn()?;
    // The plugin has its end of the doorbell; ours would hide its death.
    drop(ticket);
    peer.watch(child.id())?;

    for size in [8, 64 << 10] {
        let start = Instant::now();
        for id in 0..ROUNDS {
            let request = Frame::data(id, 1, 0, vec![id as u8; size]);
            peer.send(&request).await?;
            assert_eq!(peer.recv().await?, request);
        }
        println!(
            "{ROUNDS} round trips of {size} bytes: {:?} each",
            start.elapsed() / ROUNDS as u32
        );
    }
    print!("{}", host_section(host.hub(), [&peer]));

    child.kill()?;
    match peer.recv().await {
        Err(error @ TransportError::PeerGone(_)) => println!("after its end: {error}"),
        other => return Err(format!("the plugin's end was not noticed: {other:?}").into()),
    }
    child.wait()?;
    peer.mark_dead().await;
    fs::remove_file(path)?;
    Ok(())
}

async fn plugin(id: u16) -> Result<(), Box<dyn Error>> {
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
