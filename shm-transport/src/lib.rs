//! Shared-memory hub transport (RAPAHUB 1.0): messages between a host and its plugins through a mapped file.
//!
//! A host makes a hub file, hands out places in it and starts plugins; each plugin opens the file and takes its
//! place. Every plugin has two rings of message descriptors, one each way, and one socketpair, the doorbell, that
//! wakes whoever sleeps at its other end. Small payloads travel in the descriptor, larger ones in slots that all
//! share.
//!
//! ```text
//!   host                      hub file (mapped by all)                 plugin N
//!   ----                      ------------------------                 --------
//!   send --> recv ring of N: [tail ........ visible_head] -->          recv
//!   recv <-- send ring of N: [tail ........ visible_head] <--          send
//!            slots: 1 KiB, 16 KiB, 256 KiB, 4 MiB, 16 MiB
//!        <=========== doorbell N: AF_UNIX SOCK_DGRAM socketpair ===========>
//! ```
//!
//! The protocol that never loses a wakeup:
//!
//! ```text
//!   producer                                   consumer
//!   write entry                                pop all there is
//!   visible_head = h + 1        (Release)        tail = t + 1            (Release)
//!   ---- SeqCst fence ----                     ---- SeqCst fence ----
//!   tail < h ?  it is still busy: no ring      visible_head > tail ?  pop again
//!   else        ring                           else                   wait for the bell
//! ```
//!
//! Whatever the order, the producer sees a consumer that has caught up and rings, or the consumer sees the new head
//! and does not sleep. (It may look for some microseconds longer, where that has paid lately; nobody relies on it.)
//! Peers that ring for each message and drain always (rapace) fit into this unchanged.
//!
//! ```
//! use shm_transport::{Frame, HubConfig, HubHost, HubPeerTransport};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let host = HubHost::create(folder.path().join("hub.shm"), HubConfig::default())?;
//! let (peer, ticket) = host.add_peer("echo")?;
//!
//! // A host starts a program with `ticket.args()`, which calls `HubPeerTransport::open`. Here both are one process.
//! let plugin = HubPeerTransport::open_owned(&ticket.hub_path, ticket.peer_id, ticket.doorbell)?;
//!
//! peer.send(&Frame::data(1, 1, 0, b"hello".to_vec())).await?;
//! let request = plugin.recv().await?;
//! plugin.send(&request).await?;
//! assert_eq!(peer.recv().await?.payload, b"hello");
//!
//! peer.mark_dead().await;
//! assert!(peer.send(&request).await.is_err());
//! # Ok(())
//! # }
//! ```
//!
//! Start with [`HubHost`] and [`HubPeerTransport`]; the `echo` example shows both as processes. [`DescRing`],
//! [`HubAllocator`], [`Doorbell`] and [`futex`] are the parts, for diagnostics and tests.
//!
//! Sizes are in bytes and times in nanoseconds unless a name says otherwise. Linux only.

pub mod layout;

mod alloc;
mod claim;
mod desc;
mod diag;
mod doorbell;
mod error;
mod frame;
pub mod futex;
mod gone;
mod host;
mod hub;
mod lane;
mod lost;
#[cfg(test)]
mod lost_tests;
mod map;
#[cfg(test)]
mod memory_tests;
mod moves;
mod peer;
mod plugin;
mod ring;
#[cfg(test)]
mod ring_tests;
mod spin;
mod stack;
mod sync;
mod view;

pub use self::{
    alloc::{ClassStatus, HubAllocator, SlotRef, SlotStatus, host_owner},
    desc::Descriptor,
    diag::{host_section, plugin_section},
    doorbell::{Doorbell, Rung},
    error::{HubError, RingFault, SlotError, TransportError},
    frame::Frame,
    host::{HubHost, HubHostPeerTransport, PeerTicket},
    hub::{Hub, HubConfig},
    peer::PeerEntry,
    plugin::HubPeerTransport,
    view::{DescRing, RingStatus},
};
