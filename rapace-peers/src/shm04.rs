//! `rapace-transport-shm` 0.4.0.

use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rapace_core_04::{Frame, MsgDescHot, Transport as _};
use rapace_transport_shm::{
    Doorbell, HubConfig, HubHost, HubHostPeerTransport, HubPeer, HubPeerTransport,
    INLINE_PAYLOAD_SIZE,
};
use sim_kit::lane::{Endpoint, Message, NewPeer, Transport};

/// The transport of rapace 0.4.
#[derive(Debug)]
pub struct Shm04;

/// The host's side of a peer.
pub struct HostSide(HubHostPeerTransport);

/// The plugin's side.
pub struct PluginSide(HubPeerTransport);

fn descriptor(message: &Message) -> MsgDescHot {
    MsgDescHot {
        msg_id: message.id,
        channel_id: message.channel,
        method_id: message.method,
        flags: rapace_core_04::FrameFlags::DATA,
        ..Default::default()
    }
}

fn message(desc: &MsgDescHot, payload: Vec<u8>) -> Message {
    Message {
        id: desc.msg_id,
        channel: desc.channel_id,
        method: desc.method_id,
        payload,
    }
}

impl Endpoint for HostSide {
    async fn send(&self, message: Message) -> anyhow::Result<()> {
        let desc = descriptor(&message);
        let frame = if message.payload.len() <= INLINE_PAYLOAD_SIZE {
            Frame::with_inline_payload(desc, &message.payload)
                .context("payload does not fit inline")?
        } else {
            Frame::with_payload(desc, message.payload)
        };
        self.0.send_frame(&frame).await.context("sending a request")
    }

    async fn recv(&self) -> anyhow::Result<Message> {
        let view = self.0.recv_frame().await.context("receiving an answer")?;
        Ok(message(view.desc, view.payload.to_vec()))
    }
}

impl Endpoint for PluginSide {
    async fn send(&self, message: Message) -> anyhow::Result<()> {
        self.0
            .send_frame(&descriptor(&message), &message.payload)
            .await
            .context("sending an answer")
    }

    async fn recv(&self) -> anyhow::Result<Message> {
        let (desc, payload) = self.0.recv_frame().await.context("receiving a request")?;
        Ok(message(&desc, payload))
    }
}

impl Transport for Shm04 {
    type Hub = HubHost;
    type HostSide = HostSide;
    type PluginSide = PluginSide;

    fn create_hub(path: &Path, max_peers: u16, ring_capacity: u32) -> anyhow::Result<Arc<HubHost>> {
        Ok(Arc::new(HubHost::create(
            path,
            HubConfig {
                max_peers,
                ring_capacity,
            },
        )?))
    }

    fn add_peer(hub: &Arc<HubHost>, _name: &str) -> anyhow::Result<NewPeer<HostSide>> {
        let added = hub.add_peer()?;
        let id = added.peer_id;
        let host_fd = Some(added.doorbell.as_raw_fd());
        let endpoint = HostSide(HubHostPeerTransport::new(
            Arc::clone(hub),
            id,
            added.doorbell,
        ));
        Ok(NewPeer {
            id,
            endpoint,
            plugin_fd: added.peer_doorbell_fd,
            host_fd,
        })
    }

    async fn bury(hub: &Arc<HubHost>, id: u16, _endpoint: &HostSide) {
        // Fails for an id out of range only, and this one came from `add_peer`.
        let _ = hub.remove_peer(id);
    }

    fn open(path: &Path, id: u16, doorbell: RawFd) -> anyhow::Result<PluginSide> {
        let peer = Arc::new(
            HubPeer::open(path, id).with_context(|| format!("opening hub {}", path.display()))?,
        );
        peer.register();
        let doorbell = Doorbell::from_raw_fd(doorbell).context("taking over the doorbell")?;
        Ok(PluginSide(HubPeerTransport::new(
            peer,
            doorbell,
            format!("peer-{id}"),
        )))
    }
}
