//! `shmtrace dump`: the diagnostics of a transport's SIGUSR1 handler, read from outside, with what they mean.

mod interpret;
mod signal;
mod text;

use std::{io::Write as _, path::Path, time::Duration};

use anyhow::Context as _;
use shmtrace_engine::{
    Direction, LaneId, PeerId,
    input::{HubObservation, LaneObservation, PeerBinding},
};

use crate::{
    cli::PidTree,
    commands::inspect::{no_hub, with_descendants},
    discover::{Discovery, Hub},
    exit::Exit,
    observe::{Observer, mono_now},
    report::printable,
    teardown::HubFile,
};

/// Refreshes that are made to settle who is who: a plugin that is just being started takes a moment.
const REFRESHES: u32 = 3;

/// Arguments of `dump`.
#[derive(Debug, clap::Args)]
pub struct Dump {
    #[command(flatten)]
    trees: PidTree,

    /// Time between the two looks that tell what moves from what is stuck
    #[arg(long, value_name = "DURATION", default_value = "100ms", env = "SHMTRACE_SETTLE", value_parser = humantime::parse_duration)]
    settle: Duration,

    /// Also send SIGUSR1 to the processes that have a handler for it, and show what they print if it goes to a file
    #[arg(long, env = "SHMTRACE_SIGNAL")]
    signal: bool,
}

/// One hub as two looks showed it.
pub(super) struct Dumped {
    pub(super) path: String,
    pub(super) host: Option<(u32, String)>,
    pub(super) peers: Vec<DumpedPeer>,
    pub(super) hub: HubObservation,
    pub(super) earlier: HubObservation,
}

/// One peer as two looks showed it.
pub(super) struct DumpedPeer {
    pub(super) binding: PeerBinding,
    /// It has an entry, and no process is left that could be it.
    pub(super) gone: bool,
    pub(super) flags: u32,
    pub(super) last_seen: u64,
    /// Host -> peer: earlier and later.
    pub(super) to_peer: [LaneObservation; 2],
    /// Peer -> host: earlier and later.
    pub(super) to_host: [LaneObservation; 2],
}

impl Dump {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<Exit> {
        let pids = with_descendants(&self.trees.roots()?)?;
        let mut discovery = Discovery::new();
        for number in 0..REFRESHES {
            if number > 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
            for note in discovery.refresh(mono_now(), &pids).in_words() {
                anstream::eprintln!("shmtrace: {}", printable(&note));
            }
        }
        let hubs: Vec<_> = discovery.hubs().map(Hub::id).collect();
        let mut out = anstream::stdout().lock();
        let mut observer = Observer::new();
        for id in &hubs {
            if let Some(dumped) = look(&mut discovery, &mut observer, *id, self.settle) {
                write!(out, "{}", text::render(&dumped, &discovery))
                    .context("cannot write to stdout")?;
            }
        }
        if self.signal {
            for line in signal::send_and_collect(&pids) {
                writeln!(out, "{line}").context("cannot write to stdout")?;
            }
        }
        out.flush().context("cannot write to stdout")?;
        if hubs.is_empty() {
            return Err(no_hub(&pids));
        }
        Ok(Exit::Clean)
    }
}

/// Two looks at everything, `settle` apart.
fn look(
    discovery: &mut Discovery,
    observer: &mut Observer,
    id: shmtrace_engine::HubId,
    settle: Duration,
) -> Option<Dumped> {
    let peers: Vec<PeerId> = discovery
        .hub(id)?
        .bindings()
        .iter()
        .map(|binding| binding.peer)
        .collect();
    let earlier = observer.hub(discovery, id)?;
    let first = lanes(discovery, observer, id, &peers);
    std::thread::sleep(settle);
    let hub = observer.hub(discovery, id)?;
    let second = lanes(discovery, observer, id, &peers);
    let known = discovery.hub(id)?;
    let host = known.host().map(|host| {
        (
            host.pid,
            discovery.name(host.pid).unwrap_or_default().to_owned(),
        )
    });
    let users = users(known);
    let peers = peers
        .iter()
        .zip(first.into_iter().zip(second))
        .filter_map(|(peer, (first, second))| {
            let entry = hub.peers.iter().find(|entry| entry.peer == *peer)?;
            let ((to_peer, to_host), (to_peer_later, to_host_later)) = (first?, second?);
            let binding = known.binding(*peer)?.clone();
            let gone = match binding.plugin {
                Some(_) => !to_peer_later.consumer.alive,
                None => users.as_ref().is_some_and(|users| all_taken(known, users)),
            };
            Some(DumpedPeer {
                binding,
                gone,
                flags: entry.flags,
                last_seen: entry.last_seen,
                to_peer: [to_peer, to_peer_later],
                to_host: [to_host, to_host_later],
            })
        })
        .collect();
    Some(Dumped {
        path: known.path().to_owned(),
        host,
        peers,
        hub,
        earlier,
    })
}

/// Pids of the processes that use the hub, in the tree or not; `None` if they cannot all be seen.
fn users(hub: &Hub) -> Option<Vec<u32>> {
    let file = HubFile::look(Path::new(hub.path())).filter(|file| file.inode == hub.inode())?;
    let users = file.users();
    (users.hidden == 0).then(|| users.seen.into_iter().map(|(pid, _)| pid).collect())
}

/// Each of them is known to be the host or another peer.
fn all_taken(hub: &Hub, users: &[u32]) -> bool {
    let host = hub.host().map(|host| host.pid);
    let is_peer = |pid| {
        hub.bindings()
            .iter()
            .any(|binding| binding.plugin.is_some_and(|plugin| plugin.pid == pid))
    };
    host.is_some() && users.iter().all(|pid| host == Some(*pid) || is_peer(*pid))
}

type BothLanes = Option<(LaneObservation, LaneObservation)>;

fn lanes(
    discovery: &mut Discovery,
    observer: &mut Observer,
    hub: shmtrace_engine::HubId,
    peers: &[PeerId],
) -> Vec<BothLanes> {
    peers
        .iter()
        .map(|peer| {
            let mut lane = |direction| {
                observer.lane(
                    discovery,
                    LaneId {
                        hub,
                        peer: *peer,
                        direction,
                    },
                )
            };
            Some((lane(Direction::ToPeer)?, lane(Direction::ToHost)?))
        })
        .collect()
}
