//! What a transport must offer so that a stand-in can be built on it.

use std::future::Future;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;

/// One request or answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Unique within the session; an answer carries its request's.
    pub id: u64,
    /// The channel; an answer comes on its request's.
    pub channel: u32,
    /// The method; plain echo unless a stand-in gives it a meaning.
    pub method: u32,
    /// The payload, inline in the descriptor up to 16 bytes, in a slot beyond.
    pub payload: Vec<u8>,
}

/// Both directions of one peer as one process sees them. Futures may be polled from several tasks.
pub trait Endpoint: Send + Sync + 'static {
    /// Publishes a message and rings.
    fn send(&self, message: Message) -> impl Future<Output = anyhow::Result<()>> + Send;
    /// Waits for the next message.
    fn recv(&self) -> impl Future<Output = anyhow::Result<Message>> + Send;
}

/// A peer that was just added to a hub.
#[derive(Debug)]
pub struct NewPeer<E> {
    /// Its id.
    pub id: u16,
    /// The host's side of its lanes.
    pub endpoint: E,
    /// The plugin's end of the doorbell: inheritable, and the host's to close once the plugin runs.
    pub plugin_fd: RawFd,
    /// The number of the host's end, where the transport tells it.
    pub host_fd: Option<RawFd>,
}

/// A transport: how its hub is made and entered.
pub trait Transport: 'static {
    /// The host's handle of a hub.
    type Hub: Send + Sync + 'static;
    /// The host's side of a peer.
    type HostSide: Endpoint;
    /// The plugin's side.
    type PluginSide: Endpoint;

    /// Creates the hub file.
    fn create_hub(
        path: &Path,
        max_peers: u16,
        ring_capacity: u32,
    ) -> anyhow::Result<Arc<Self::Hub>>;
    /// Reserves a peer and makes its doorbell. Called within the runtime.
    fn add_peer(hub: &Arc<Self::Hub>, name: &str) -> anyhow::Result<NewPeer<Self::HostSide>>;
    /// Marks a peer dead whose process has ended, so that what it owned is free again.
    fn bury(
        hub: &Arc<Self::Hub>,
        id: u16,
        endpoint: &Self::HostSide,
    ) -> impl Future<Output = ()> + Send;
    /// Enters a hub as the plugin `id`. Called within the runtime.
    fn open(path: &Path, id: u16, doorbell: RawFd) -> anyhow::Result<Self::PluginSide>;
}
