//! The probes' tables of processes and sockets, kept as discovery wants them.

use std::collections::{BTreeMap, BTreeSet};

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
    taken: BTreeSet<u32>,
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
                    inode: socket.0,
                    hub: hub.0,
                    peer: peer.0,
                    side,
                    to_peer: *to_peer,
                    to_host: *to_host,
                    ..Doorbell::default()
                };
                self.describe(probes, socket.0, &doorbell)
            }
            ProbeUpdate::Ignore { socket } => {
                let ignored = Doorbell {
                    inode: socket.0,
                    side: SIDE_IGNORED,
                    ..Doorbell::default()
                };
                self.describe(probes, socket.0, &ignored)
            }
            ProbeUpdate::Forget { socket } => {
                if let Some(slot) = self.slots.remove(&socket.0) {
                    probes.forget_socket(socket.0, slot);
                    self.taken.remove(&slot);
                }
                Ok(())
            }
        }
    }

    /// Where the probes look first if that is free, else anywhere.
    fn free_slot(&self, socket: u64) -> Option<u32> {
        let own = u32::try_from(socket % u64::from(MAX_DOORBELLS)).ok()?;
        std::iter::once(own)
            .chain(0..MAX_DOORBELLS)
            .find(|slot| !self.taken.contains(slot))
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
            let slot = self.free_slot(socket).ok_or(MapError::OutOfBounds {
                index: MAX_DOORBELLS,
                max_entries: MAX_DOORBELLS,
            })?;
            self.taken.insert(slot);
            self.slots.insert(socket, slot);
            slot
        };
        probes.describe_socket(socket, slot, doorbell)
    }
}
