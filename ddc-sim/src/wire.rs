//! The transport that the stand-in speaks.

use std::os::fd::{IntoRawFd as _, RawFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use shm_transport::{Frame, HubConfig, HubHost, HubHostPeerTransport, HubPeerTransport};
use sim_kit::lane::{Endpoint, Message, NewPeer, Transport};

/// `shm-transport`.
#[derive(Debug)]
pub(crate) struct Wire;

/// The host's side of a peer.
#[derive(Debug)]
pub(crate) struct HostSide(pub(crate) HubHostPeerTransport);

/// The plugin's side.
#[derive(Debug, Clone)]
pub(crate) struct PluginSide(pub(crate) Arc<HubPeerTransport>);

fn frame(message: Message) -> Frame {
    Frame::data(message.id, message.channel, message.method, message.payload)
}

fn message(frame: Frame) -> Message {
    Message {
        id: frame.msg_id,
        channel: frame.channel_id,
        method: frame.method_id,
        payload: frame.payload,
    }
}

impl Endpoint for HostSide {
    async fn send(&self, message: Message) -> anyhow::Result<()> {
        self.0
            .send(&frame(message))
            .await
            .context("sending a request")
    }

    async fn recv(&self) -> anyhow::Result<Message> {
        self.0
            .recv()
            .await
            .map(message)
            .context("receiving an answer")
    }
}

impl Endpoint for PluginSide {
    async fn send(&self, message: Message) -> anyhow::Result<()> {
        self.0
            .send(&frame(message))
            .await
            .context("sending an answer")
    }

    async fn recv(&self) -> anyhow::Result<Message> {
        self.0
            .recv()
            .await
            .map(message)
            .context("receiving a request")
    }
}

impl Transport for Wire {
    type Hub = HubHost;
    type HostSide = HostSide;
    type PluginSide = PluginSide;

    fn create_hub(path: &Path, max_peers: u16, ring_capacity: u32) -> anyhow::Result<Arc<HubHost>> {
        Ok(HubHost::create(
            path,
            HubConfig {
                max_peers,
                ring_capacity,
            },
        )?)
    }

    fn add_peer(hub: &Arc<HubHost>, name: &str) -> anyhow::Result<NewPeer<HostSide>> {
        let (transport, ticket) = hub.add_peer(name)?;
        Ok(NewPeer {
            id: ticket.peer_id,
            host_fd: Some(transport.doorbell().as_raw_fd()),
            plugin_fd: ticket.doorbell.into_raw_fd(),
            endpoint: HostSide(transport),
        })
    }

    async fn bury(_hub: &Arc<HubHost>, _id: u16, endpoint: &HostSide) {
        endpoint.0.mark_dead().await;
    }

    fn open(path: &Path, id: u16, doorbell: RawFd) -> anyhow::Result<PluginSide> {
        // SAFETY: the number was given to us on the command line for this, and nothing else in this process knows it.
        let transport = unsafe { HubPeerTransport::open(path, id, doorbell) };
        let transport = transport.with_context(|| format!("opening hub {}", path.display()))?;
        Ok(PluginSide(Arc::new(transport)))
    }
}
