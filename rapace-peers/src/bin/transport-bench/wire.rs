//! The two transports behind the same few calls.

use std::ffi::OsString;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rapace_core_04::{Frame as RapaceFrame, FrameFlags, MsgDescHot, Transport as _};
use rapace_transport_shm as rapace;
use shm_transport::{Frame, HubConfig, HubHost, HubHostPeerTransport, HubPeerTransport};

use crate::Wire;

/// A host with one peer.
pub(crate) enum Host {
    Ours(
        Box<HubHostPeerTransport>,
        #[expect(dead_code, reason = "kept open")] OwnedFd,
    ),
    Rapace(Box<rapace::HubHostPeerTransport>),
}

/// Its plugin.
pub(crate) enum Plugin {
    Ours(Box<HubPeerTransport>),
    Rapace(Box<rapace::HubPeerTransport>),
}

fn descriptor(id: u64, method: u32) -> MsgDescHot {
    MsgDescHot {
        msg_id: id,
        channel_id: 1,
        method_id: method,
        flags: FrameFlags::DATA,
        ..Default::default()
    }
}

impl Host {
    /// Creates a hub; returns what its plugin is told too.
    pub(crate) fn create(wire: Wire, path: &Path) -> anyhow::Result<(Self, Vec<OsString>)> {
        match wire {
            Wire::Ours => {
                let (peer, ticket) =
                    HubHost::create(path, HubConfig::default())?.add_peer("bench")?;
                let arguments = ticket.args().into();
                Ok((Self::Ours(Box::new(peer), ticket.doorbell), arguments))
            }
            Wire::Rapace => {
                let hub = Arc::new(rapace::HubHost::create(path, rapace::HubConfig::default())?);
                let peer = hub.add_peer()?;
                let mut file = OsString::from("--hub-path=");
                file.push(path);
                let arguments = vec![
                    file,
                    format!("--peer-id={}", peer.peer_id).into(),
                    format!("--doorbell-fd={}", peer.peer_doorbell_fd.as_raw_fd()).into(),
                ];
                let transport = rapace::HubHostPeerTransport::new(hub, peer.peer_id, peer.doorbell);
                Ok((Self::Rapace(Box::new(transport)), arguments))
            }
        }
    }

    pub(crate) async fn send(&self, id: u64, method: u32, payload: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Ours(peer, _) => Ok(peer
                .send(&Frame::data(id, 1, method, payload.to_vec()))
                .await?),
            Self::Rapace(peer) => {
                let desc = descriptor(id, method);
                let frame = if payload.len() <= rapace::INLINE_PAYLOAD_SIZE {
                    RapaceFrame::with_inline_payload(desc, payload).context("too long")?
                } else {
                    RapaceFrame::with_payload(desc, payload.to_vec())
                };
                Ok(peer.send_frame(&frame).await?)
            }
        }
    }

    /// The length of the next message.
    pub(crate) async fn recv(&self) -> anyhow::Result<usize> {
        match self {
            Self::Ours(peer, _) => Ok(peer.recv().await?.payload.len()),
            Self::Rapace(peer) => Ok(peer.recv_frame().await?.payload.len()),
        }
    }
}

impl Plugin {
    pub(crate) fn open(wire: Wire, path: &Path, id: u16, doorbell: RawFd) -> anyhow::Result<Self> {
        match wire {
            Wire::Ours => {
                // SAFETY: inherited for this, and nothing else here knows the number.
                let transport = unsafe { HubPeerTransport::open(path, id, doorbell) }?;
                Ok(Self::Ours(Box::new(transport)))
            }
            Wire::Rapace => {
                let peer = Arc::new(rapace::HubPeer::open(path, id)?);
                peer.register();
                let doorbell = rapace::Doorbell::from_raw_fd(doorbell)?;
                let transport = rapace::HubPeerTransport::new(peer, doorbell, "bench");
                Ok(Self::Rapace(Box::new(transport)))
            }
        }
    }

    pub(crate) async fn recv(&self) -> anyhow::Result<(u64, u32, Vec<u8>)> {
        match self {
            Self::Ours(host) => {
                let frame = host.recv().await?;
                Ok((frame.msg_id, frame.method_id, frame.payload))
            }
            Self::Rapace(host) => {
                let (desc, payload) = host.recv_frame().await?;
                Ok((desc.msg_id, desc.method_id, payload))
            }
        }
    }

    pub(crate) async fn send(&self, id: u64, payload: Vec<u8>) -> anyhow::Result<()> {
        match self {
            Self::Ours(host) => Ok(host.send(&Frame::data(id, 1, 0, payload)).await?),
            Self::Rapace(host) => Ok(host.send_frame(&descriptor(id, 0), &payload).await?),
        }
    }
}
