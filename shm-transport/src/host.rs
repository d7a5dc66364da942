//! The host's side.

use std::ffi::OsString;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::process::Pid;
use tokio::sync::Notify;

use crate::alloc::host_owner;
use crate::claim::Claim;
use crate::doorbell::Doorbell;
use crate::error::{HubError, TransportError};
use crate::frame::Frame;
use crate::gone::{Gone, asleep};
use crate::hub::{Hub, HubConfig};
use crate::lane::{Direction, Receiver, Sender};
use crate::peer::PeerEntry;

/// A hub and its host.
#[derive(Debug)]
pub struct HubHost {
    hub: Arc<Hub>,
    /// One for each id.
    seats: Mutex<Vec<Seat>>,
}

/// What a plugin needs to find its place.
#[derive(Debug)]
pub struct PeerTicket {
    /// Its id.
    pub peer_id: u16,
    /// The hub file.
    pub hub_path: PathBuf,
    /// Its end of the doorbell: inherited by every child that is started, so start the plugin and drop the ticket.
    pub doorbell: OwnedFd,
}

impl PeerTicket {
    /// `--hub-path=PATH`, `--peer-id=N` and `--doorbell-fd=FD`.
    pub fn args(&self) -> [OsString; 3] {
        let mut path = OsString::from("--hub-path=");
        path.push(&self.hub_path);
        [
            path,
            format!("--peer-id={}", self.peer_id).into(),
            format!("--doorbell-fd={}", self.doorbell.as_raw_fd()).into(),
        ]
    }
}

impl HubHost {
    /// Creates the hub file.
    ///
    /// # Errors
    ///
    /// A configuration that no hub can have, or a file that cannot be made.
    pub fn create(path: impl AsRef<Path>, config: HubConfig) -> Result<Arc<Self>, HubError> {
        Ok(Self::new(Hub::create(path, config)?))
    }

    /// Becomes the host of a hub that was just created, see [`Hub::create_with`].
    pub fn new(hub: Hub) -> Arc<Self> {
        let seats = vec![Seat::default(); usize::from(hub.max_peers())];
        Arc::new(Self {
            hub: Arc::new(hub),
            seats: Mutex::new(seats),
        })
    }

    /// The hub.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Gives out a place: our side of it, and what the plugin needs. Call it within a tokio runtime.
    ///
    /// Ids of peers that are dead are given out again, with empty rings, once all fresh ones are used.
    ///
    /// # Errors
    ///
    /// When all places are taken, or no doorbell can be had.
    pub fn add_peer(
        self: &Arc<Self>,
        name: impl Into<String>,
    ) -> Result<(HubHostPeerTransport, PeerTicket), HubError> {
        let (doorbell, theirs) = Doorbell::create_pair()?;
        let id = self.reserve()?;
        let entry = self.hub.peer(id)?;
        let (send, recv) = (self.hub.recv_ring(id)?, self.hub.send_ring(id)?);
        send.reset();
        recv.reset();
        entry.reserve();
        // Relaxed: counters for people to look at.
        self.hub.active_peers()?.fetch_add(1, Ordering::Relaxed);
        let sender = Sender::new(
            &self.hub,
            send,
            entry.clone(),
            Direction::ToPeer,
            host_owner(id),
        );
        let receiver = Receiver::new(&self.hub, recv, entry.clone(), Direction::ToHost);
        let ticket = PeerTicket {
            peer_id: id,
            hub_path: self.hub.path().to_owned(),
            doorbell: theirs,
        };
        let transport = HubHostPeerTransport {
            host: Arc::clone(self),
            entry,
            name: name.into(),
            doorbell,
            sender,
            receiver,
            process: OnceLock::new(),
            dead: AtomicBool::new(false),
            buried: Notify::new(),
        };
        Ok((transport, ticket))
    }

    fn reserve(&self) -> Result<u16, HubError> {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let max = self.hub.max_peers();
        let next = self.hub.peer_id_counter()?;
        // Relaxed: only the host writes it.
        let fresh = next.load(Ordering::Relaxed);
        let id = if fresh < max {
            next.store(fresh + 1, Ordering::Relaxed);
            fresh
        } else {
            seats
                .iter()
                .position(|seat| !seat.taken)
                .ok_or(HubError::TooManyPeers(max))? as u16
        };
        let seat = seats
            .get_mut(usize::from(id))
            .ok_or(HubError::TooManyPeers(max))?;
        *seat = Seat {
            taken: true,
            live: true,
            pid: None,
        };
        Ok(id)
    }

    fn seat(&self, id: u16, change: impl FnOnce(&mut Seat)) {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seat) = seats.get_mut(usize::from(id)) {
            change(seat);
        }
    }

    /// Gives back the slots that dead peers had in their hands: taken off a free list and not marked yet, or freed and
    /// not put back yet. [`mark_dead`](HubHostPeerTransport::mark_dead) does this too, so there is a reason to call
    /// it only if peers of rapace, which do not say what they have in their hands, were busy then: it needs a
    /// moment at which all that run are asleep, and they must be [watched](HubHostPeerTransport::watch).
    ///
    /// Returns the slots that were given back.
    pub fn recover_slots(&self) -> usize {
        // Held throughout, so that no peer is added meanwhile.
        let seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let live: Vec<_> = (0_u16..)
            .zip(seats.iter())
            .filter(|(_, seat)| seat.live)
            .filter_map(|(id, seat)| Some((self.hub.peer(id).ok()?, seat.pid)))
            .collect();
        self.hub.allocator().recover_lost(|slot| {
            live.iter().any(|(entry, pid)| match entry.claim() {
                Claim::Slot(claimed) => claimed == slot,
                Claim::Nothing => false,
                Claim::Unannounced => !pid.is_some_and(asleep),
            })
        })
    }
}

/// What the host knows of a place.
#[derive(Clone, Debug, Default)]
struct Seat {
    /// Given out, so not to be given out again.
    taken: bool,
    /// Its process may run.
    live: bool,
    /// The process, if it is watched.
    pid: Option<u32>,
}

/// The host's side of one peer.
///
/// Both methods that wait may be called from several tasks and may be dropped at any time without losing anything.
/// They end with [`TransportError::PeerGone`] once the peer is marked dead, or its process has ended if it is
/// [watched](Self::watch).
#[derive(Debug)]
pub struct HubHostPeerTransport {
    host: Arc<HubHost>,
    entry: PeerEntry,
    name: String,
    doorbell: Doorbell,
    sender: Sender,
    receiver: Receiver,
    process: OnceLock<Gone>,
    dead: AtomicBool,
    buried: Notify,
}

impl HubHostPeerTransport {
    /// Notices the end of the plugin's process from now on. Without it, call [`mark_dead`](Self::mark_dead) when the
    /// process was reaped: a dead peer sends no end of file. Call it within a tokio runtime, before the child is
    /// reaped, and only once.
    ///
    /// # Errors
    ///
    /// When there is no such process, or no pidfd can be had.
    pub fn watch(&self, pid: u32) -> Result<(), HubError> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or_else(|| HubError::Watch {
            pid,
            source: std::io::ErrorKind::InvalidInput.into(),
        })?;
        let _only_the_first = self.process.set(Gone::watch(raw)?);
        self.host.seat(self.entry.id(), |seat| seat.pid = Some(pid));
        Ok(())
    }

    /// Sends a message to the plugin. When the ring is full or no slot is free, it waits until messages were taken.
    ///
    /// # Errors
    ///
    /// When the peer is dead, the ring is corrupt, the doorbell fails, or the payload is larger than any slot.
    pub async fn send(&self, frame: &Frame) -> Result<(), TransportError> {
        let alive = || self.alive();
        let sending = self.sender.send(frame, &self.doorbell, &alive);
        tokio::select! {
            biased;
            sent = sending => sent.map_err(|error| self.explain(error)),
            () = self.gone() => Err(TransportError::PeerGone(self.entry.id())),
        }
    }

    /// Waits for the next message from the plugin.
    ///
    /// # Errors
    ///
    /// When the peer is dead, the ring is corrupt, or the message refers to a payload that is not there. A bad
    /// message is skipped: the next call goes on behind it. What a plugin sent before it ended is delivered until
    /// the peer is marked dead.
    pub async fn recv(&self) -> Result<Frame, TransportError> {
        let alive = || self.alive();
        let receiving = self.receiver.recv(&self.doorbell, &alive);
        tokio::select! {
            biased;
            received = receiving => received,
            () = self.gone() => {
                self.alive()?;
                match self.receiver.try_recv(&alive).await? {
                    Some(frame) => Ok(frame),
                    None => Err(TransportError::PeerGone(self.entry.id())),
                }
            }
        }
    }

    /// The plugin's process has ended: frees all its slots, ends all that wait for it, and lets its id be used again
    /// once this transport is dropped. Returns the slots that were freed. It does not wait for calls of `send` and
    /// `recv` that are not polled.
    ///
    /// Only when it has ended: a process that still runs would go on writing to slots that are others' by then.
    #[expect(
        clippy::unused_async,
        reason = "what it does next may have to wait, and callers are tasks"
    )]
    pub async fn mark_dead(&self) -> usize {
        // AcqRel: pairs with `alive`; only the first frees.
        if self.dead.swap(true, Ordering::AcqRel) {
            return 0;
        }
        self.entry.bury();
        self.buried.notify_waiters();
        if let Ok(active) = self.host.hub.active_peers() {
            // Relaxed: a counter for people to look at.
            active.fetch_sub(1, Ordering::Relaxed);
        }
        // Whoever touches slots of it has seen it alive, and ends now; later ones see it dead.
        self.sender.settle();
        self.receiver.settle();
        self.host.seat(self.entry.id(), |seat| seat.live = false);
        self.host.hub.allocator().reclaim_peer(self.entry.id()) + self.host.recover_slots()
    }

    /// The peer's id.
    pub fn peer_id(&self) -> u16 {
        self.entry.id()
    }

    /// The name that was given to it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its entry in the hub.
    pub fn peer(&self) -> &PeerEntry {
        &self.entry
    }

    /// The hub.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.host.hub
    }

    /// Our end of the doorbell.
    pub fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    /// Bytes of the first signal queued on our end, 0 when there is none.
    pub fn doorbell_pending_bytes(&self) -> usize {
        self.doorbell.pending_bytes()
    }

    fn alive(&self) -> Result<(), TransportError> {
        // Acquire: pairs with `mark_dead`.
        if self.dead.load(Ordering::Acquire) {
            return Err(TransportError::PeerGone(self.entry.id()));
        }
        Ok(())
    }

    /// Returns when the peer is dead, or its process has ended.
    async fn gone(&self) {
        let buried = self.buried.notified();
        tokio::pin!(buried);
        // Registered before the flag is looked at, so a burial in between is not missed.
        buried.as_mut().enable();
        if self.alive().is_err() {
            return;
        }
        match self.process.get() {
            Some(process) => tokio::select! {
                () = buried => {}
                () = process.wait() => {}
            },
            None => buried.await,
        }
    }

    /// A doorbell without another end means that the peer is gone.
    fn explain(&self, error: TransportError) -> TransportError {
        match error {
            TransportError::Doorbell(error)
                if error.kind() == std::io::ErrorKind::ConnectionRefused =>
            {
                TransportError::PeerGone(self.entry.id())
            }
            error => error,
        }
    }
}

impl Drop for HubHostPeerTransport {
    fn drop(&mut self) {
        // Acquire: pairs with `mark_dead`. The place of a peer that may still run stays taken for ever.
        if self.dead.load(Ordering::Acquire) {
            self.host.seat(self.entry.id(), |seat| seat.taken = false);
        }
    }
}
