//! The plugin's side.

use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::doorbell::Doorbell;
use crate::error::{HubError, TransportError};
use crate::frame::Frame;
use crate::gone::Gone;
use crate::hub::Hub;
use crate::lane::{Direction, Receiver, Sender};
use crate::peer::PeerEntry;

/// A plugin's place in a hub.
///
/// Both methods that wait may be called from several tasks and may be dropped at any time without losing anything.
/// When the host's process ends they return [`TransportError::HostGone`]; what the host sent before is delivered
/// first.
#[derive(Debug)]
pub struct HubPeerTransport {
    hub: Arc<Hub>,
    entry: PeerEntry,
    doorbell: Doorbell,
    sender: Sender,
    receiver: Receiver,
    host: Option<Gone>,
    host_gone: AtomicBool,
}

impl HubPeerTransport {
    /// Enters the hub as peer `id` with the doorbell that was inherited. Call it within a tokio runtime.
    ///
    /// The host is the process that made the doorbell. If it cannot be seen from here (another pid namespace), its
    /// end is not noticed other than by a send that fails.
    ///
    /// # Errors
    ///
    /// When the file is no hub, has no such peer, or the fd is no doorbell.
    ///
    /// # Safety
    ///
    /// Nothing else in this process may own `doorbell`.
    pub unsafe fn open(path: impl AsRef<Path>, id: u16, doorbell: RawFd) -> Result<Self, HubError> {
        let hub = Arc::new(Hub::open(path)?);
        // SAFETY: the caller says so.
        let doorbell = unsafe { Doorbell::from_raw_fd(doorbell) }?;
        Self::enter(hub, id, doorbell)
    }

    /// The same with an fd that is owned already.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open).
    pub fn open_owned(
        path: impl AsRef<Path>,
        id: u16,
        doorbell: OwnedFd,
    ) -> Result<Self, HubError> {
        let fd = doorbell.as_raw_fd();
        std::mem::forget(doorbell);
        // SAFETY: it was owned, and is given away.
        unsafe { Self::open(path, id, fd) }
    }

    fn enter(hub: Arc<Hub>, id: u16, doorbell: Doorbell) -> Result<Self, HubError> {
        let entry = hub.peer(id)?;
        let sender = Sender::new(
            &hub,
            hub.send_ring(id)?,
            entry.clone(),
            Direction::ToHost,
            u32::from(id),
        );
        let receiver = Receiver::new(&hub, hub.recv_ring(id)?, entry.clone(), Direction::ToPeer);
        let host = doorbell
            .maker()
            .filter(|pid| *pid != rustix::process::getpid())
            .map(Gone::watch)
            .transpose()
            .or_else(already_gone)?;
        hub.allocator().announce(entry.clone());
        entry.enter();
        entry.heartbeat();
        Ok(Self {
            hub,
            entry,
            doorbell,
            sender,
            receiver,
            host,
            host_gone: AtomicBool::new(false),
        })
    }

    /// Sends a message to the host. When the ring is full or no slot is free, it waits until the host has taken
    /// messages.
    ///
    /// # Errors
    ///
    /// When the host has ended, the ring is corrupt, the doorbell fails, or the payload is larger than any slot.
    pub async fn send(&self, frame: &Frame) -> Result<(), TransportError> {
        self.entry.heartbeat();
        let alive = || self.alive();
        let sending = self.sender.send(frame, &self.doorbell, &alive);
        tokio::select! {
            biased;
            sent = sending => sent.map_err(|error| self.explain(error)),
            () = self.host_gone() => Err(TransportError::HostGone),
        }
    }

    /// Waits for the next message from the host.
    ///
    /// # Errors
    ///
    /// When the host has ended and all its messages are taken, the ring is corrupt, or the message refers to a
    /// payload that is not there. A bad message is skipped: the next call goes on behind it.
    pub async fn recv(&self) -> Result<Frame, TransportError> {
        self.entry.heartbeat();
        let alive = || Ok(());
        let receiving = self.receiver.recv(&self.doorbell, &alive);
        tokio::select! {
            biased;
            received = receiving => received,
            () = self.host_gone() => {
                match self.receiver.try_recv(&alive).await? {
                    Some(frame) => Ok(frame),
                    None => Err(TransportError::HostGone),
                }
            }
        }
    }

    /// Our entry in the hub.
    pub fn peer(&self) -> &PeerEntry {
        &self.entry
    }

    /// The hub.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
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
        // Relaxed: a hint; the process descriptor is what counts.
        if self.host_gone.load(Ordering::Relaxed) {
            return Err(TransportError::HostGone);
        }
        Ok(())
    }

    async fn host_gone(&self) {
        match &self.host {
            Some(host) => host.wait().await,
            None => std::future::pending().await,
        }
        // Relaxed: as in `alive`.
        self.host_gone.store(true, Ordering::Relaxed);
    }

    /// A doorbell without another end means that the host is gone.
    fn explain(&self, error: TransportError) -> TransportError {
        match error {
            TransportError::Doorbell(error)
                if error.kind() == std::io::ErrorKind::ConnectionRefused =>
            {
                self.host_gone.store(true, Ordering::Relaxed);
                TransportError::HostGone
            }
            error => error,
        }
    }
}

impl Drop for HubPeerTransport {
    fn drop(&mut self) {
        self.entry.leave();
    }
}

/// A host that cannot be watched because it is in no namespace of ours, or because the kernel has no pidfds, is not
/// watched; one that has ended already is an error like any other.
fn already_gone(error: HubError) -> Result<Option<Gone>, HubError> {
    match error {
        HubError::Watch { ref source, .. }
            if source.raw_os_error() == Some(libc::ENOSYS)
                || source.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            Ok(None)
        }
        error => Err(error),
    }
}
