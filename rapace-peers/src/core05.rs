//! `rapace-core` 0.5.0 with its feature `shm`.

use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rapace_core_05::shm::{Doorbell, HubConfig, HubHost, HubPeer, ShmTransport};
use rapace_core_05::{Frame, FrameFlags, MsgDescHot};
use sim_kit::lane::{Endpoint, Message, NewPeer, Transport};

/// The transport of rapace 0.5.
#[derive(Debug)]
pub struct Core05;

/// Either side of a peer: 0.5 has one type for both.
pub struct Side(rapace_core_05::Transport);

impl Endpoint for Side {
    async fn send(&self, message: Message) -> anyhow::Result<()> {
        let mut desc = MsgDescHot::new();
        desc.msg_id = message.id;
        desc.channel_id = message.channel;
        desc.method_id = message.method;
        desc.flags = FrameFlags::DATA;
        let frame = Frame::with_payload(desc, message.payload);
        self.0.send_frame(frame).await.context("sending a frame")
    }

    async fn recv(&self) -> anyhow::Result<Message> {
        let frame = self.0.recv_frame().await.context("receiving a frame")?;
        let desc = &frame.desc;
        let payload = frame.payload_bytes().to_vec();
        Ok(Message {
            id: desc.msg_id,
            channel: desc.channel_id,
            method: desc.method_id,
            payload,
        })
    }
}

impl Transport for Core05 {
    type Hub = HubHost;
    type HostSide = Side;
    type PluginSide = Side;

    fn create_hub(path: &Path, max_peers: u16, ring_capacity: u32) -> anyhow::Result<Arc<HubHost>> {
        Ok(Arc::new(HubHost::create(
            path,
            HubConfig {
                max_peers,
                ring_capacity,
            },
        )?))
    }

    fn add_peer(hub: &Arc<HubHost>, _name: &str) -> anyhow::Result<NewPeer<Side>> {
        let added = hub.add_peer()?;
        let transport = ShmTransport::hub_host_peer(Arc::clone(hub), added.peer_id, added.doorbell);
        let endpoint = Side(rapace_core_05::Transport::Shm(transport));
        Ok(NewPeer {
            id: added.peer_id,
            endpoint,
            plugin_fd: added.peer_doorbell_fd,
            host_fd: None,
        })
    }

    async fn bury(hub: &Arc<HubHost>, id: u16, _endpoint: &Side) {
        // Fails for an id out of range only, and this one came from `add_peer`.
        let _ = hub.remove_peer(id);
    }

    fn open(path: &Path, id: u16, doorbell: RawFd) -> anyhow::Result<Side> {
        let peer = Arc::new(
            HubPeer::open(path, id).with_context(|| format!("opening hub {}", path.display()))?,
        );
        peer.register();
        let doorbell = Doorbell::from_raw_fd(doorbell).context("taking over the doorbell")?;
        let transport = ShmTransport::hub_peer(peer, doorbell, format!("peer-{id}"));
        Ok(Side(rapace_core_05::Transport::Shm(transport)))
    }
}
