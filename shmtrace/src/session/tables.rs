//! The probes' tables of processes and sockets, kept as discovery wants them.

use std::collections::BTreeMap;

use aya::maps::MapError;
use shmtrace_common::{
    Doorbell, HubMapping, MAX_DOORBELLS, MAX_HUBS_PER_PROCESS, Process, SIDE_HOST, SIDE_IGNORED,
    SIDE_PLUGIN,
};

use crate::{
    discover::{ProbeUpdate, Side},
    probes::Probes,
};

use super::tree;

/// Which slot of the probes' table each socket has.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    slots: BTreeMap<u64, u32>,
    free: Vec<u32>,
    used: u32,
}

impl Tables {
    /// Carries out one update.
    pub(crate) fn apply(
        &mut self,
        probes: &mut Probes,
        update: &ProbeUpdate,
    ) -> Result<(), MapError> {
        match update {
            ProbeUpdate::Process {
                pid,
                participant,
                mappings,
            } => {
                // Gone meanwhile, and the probes know it: an entry made now would never be removed.
                let Some(known) = probes.process(*pid) else {
                    return Ok(());
                };
                let mut hubs = [HubMapping::default(); MAX_HUBS_PER_PROCESS];
                for (slot, mapping) in hubs.iter_mut().zip(mappings) {
                    *slot = HubMapping {
                        hub: mapping.hub.0,
                        pad: 0,
                        base: mapping.base,
                        len: mapping.len,
                    };
                }
                let process = Process {
                    flags: tree::flags(*participant),
                    hubs,
                    ..known
                };
                probes.trace(*pid, &process)
            }
            ProbeUpdate::Doorbell {
                socket,
                hub,
                peer,
                side,
                to_peer,
                to_host,
            } => {
                let side = match side {
                    Side::Host => SIDE_HOST,
                    Side::Plugin => SIDE_PLUGIN,
                };
                let doorbell = Doorbell {
                    hub: hub.0,
                    peer: peer.0,
                    side,
                    to_peer: *to_peer,
                    to_host: *to_host,
                };
                self.describe(probes, socket.0, &doorbell)
            }
            ProbeUpdate::Ignore { socket } => {
                let ignored = Doorbell {
                    side: SIDE_IGNORED,
                    ..Doorbell::default()
                };
                self.describe(probes, socket.0, &ignored)
            }
            ProbeUpdate::Forget { socket } => {
                if let Some(slot) = self.slots.remove(&socket.0) {
                    probes.forget_socket(socket.0);
                    self.free.push(slot);
                }
                Ok(())
            }
        }
    }

    fn describe(
        &mut self,
        probes: &mut Probes,
        socket: u64,
        doorbell: &Doorbell,
    ) -> Result<(), MapError> {
        let slot = if let Some(slot) = self.slots.get(&socket) {
            *slot
        } else {
            let slot = self.free.pop().unwrap_or(self.used);
            if slot >= MAX_DOORBELLS {
                return Err(MapError::OutOfBounds {
                    index: slot,
                    max_entries: MAX_DOORBELLS,
                });
            }
            self.used = self.used.max(slot + 1);
            self.slots.insert(socket, slot);
            slot
        };
        probes.describe_socket(socket, slot, doorbell)
    }
}
