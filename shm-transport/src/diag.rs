//! Diagnostics in the format that people know from `kill -USR1`.

use std::fmt;

use crate::alloc::{ClassStatus, SlotStatus};
use crate::host::HubHostPeerTransport;
use crate::hub::Hub;
use crate::plugin::HubPeerTransport;
use crate::view::RingStatus;

impl fmt::Display for RingStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "head={} tail={} len={}/{}",
            self.visible_head, self.tail, self.len, self.capacity
        )
    }
}

impl fmt::Display for ClassStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} total, {} free, {} allocated, {} in_flight",
            self.total, self.free, self.allocated, self.in_flight
        )
    }
}

impl fmt::Display for SlotStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "HubAllocator slots: {}", self.total())?;
        for (number, class) in self.classes.iter().enumerate() {
            writeln!(f, "  class[{number}] ({:>7}B): {class}", class.slot_size)?;
        }
        Ok(())
    }
}

/// The host's section: slots, and one line for each peer.
pub fn host_section<'a>(
    hub: &Hub,
    peers: impl IntoIterator<Item = &'a HubHostPeerTransport>,
) -> String {
    let mut section = format!(
        "--- Hub Transport Diagnostics ---\n{}",
        hub.allocator().slot_status()
    );
    for peer in peers {
        section.push_str(&peer_line(
            hub,
            peer.peer_id(),
            peer.name(),
            peer.doorbell_pending_bytes(),
        ));
    }
    section.push_str("--- End Hub Diagnostics ---\n");
    section
}

/// A plugin's section: its own line, with its own end of the doorbell.
pub fn plugin_section(plugin: &HubPeerTransport, name: &str) -> String {
    format!(
        "--- Hub Transport Diagnostics ---\n{}--- End Hub Diagnostics ---\n",
        peer_line(
            plugin.hub(),
            plugin.peer().id(),
            name,
            plugin.doorbell_pending_bytes()
        )
    )
}

fn peer_line(hub: &Hub, id: u16, name: &str, pending: usize) -> String {
    let (Ok(recv), Ok(send)) = (hub.recv_ring(id), hub.send_ring(id)) else {
        return String::new();
    };
    format!(
        "  peer[{id}] \"{name}\": recv_ring({}) send_ring({}) doorbell_pending={pending}\n",
        recv.ring_status(),
        send.ring_status()
    )
}
