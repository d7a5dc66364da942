//! An entry of the peer table.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::claim::{self, Claim};
use crate::error::HubError;
use crate::layout::peer;
use crate::map::Mapping;

/// One peer as the hub knows it.
#[derive(Clone, Debug)]
pub struct PeerEntry {
    map: Arc<Mapping>,
    offset: usize,
    id: u16,
}

/// Stands in for fields that cannot be out of the file, as `new` has seen them in it.
static NOWHERE: AtomicU32 = AtomicU32::new(0);
static NOWHERE_WIDE: AtomicU64 = AtomicU64::new(0);

impl PeerEntry {
    pub(crate) fn new(map: Arc<Mapping>, offset: usize, id: u16) -> Result<Self, HubError> {
        map.slice::<AtomicU64>("peer entry", offset, peer::SIZE / 8)?;
        Ok(Self { map, offset, id })
    }

    fn word(&self, field: usize) -> &AtomicU32 {
        self.map
            .at("peer entry", self.offset + field)
            .unwrap_or(&NOWHERE)
    }

    fn wide(&self, field: usize) -> &AtomicU64 {
        self.map
            .at("peer entry", self.offset + field)
            .unwrap_or(&NOWHERE_WIDE)
    }

    /// The peer's id.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// `FLAG_*` bits of [`layout::peer`](crate::layout::peer).
    pub fn flags(&self) -> u32 {
        // Acquire: pairs with the Release of the changes below; who sees ACTIVE or DEAD sees what came before it.
        self.word(peer::FLAGS).load(Ordering::Acquire)
    }

    /// Whether the host saw its end.
    pub fn is_dead(&self) -> bool {
        self.flags() & peer::FLAG_DEAD != 0
    }

    /// Whether a plugin is attached.
    pub fn is_active(&self) -> bool {
        self.flags() & peer::FLAG_ACTIVE != 0
    }

    /// Heartbeats so far.
    pub fn epoch(&self) -> u64 {
        // Relaxed: a counter, nothing hangs on it.
        self.wide(peer::EPOCH).load(Ordering::Relaxed)
    }

    /// The last heartbeat, in nanoseconds since the Unix epoch; 0 before the first.
    pub fn last_seen_ns(&self) -> u64 {
        // Relaxed: as above.
        self.wide(peer::LAST_SEEN).load(Ordering::Relaxed)
    }

    /// Says that the peer lives.
    pub fn heartbeat(&self) {
        // The coarse clock: a few ms do not matter here, and this is done for every message.
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        let now = (now.tv_sec as u64)
            .wrapping_mul(1_000_000_000)
            .wrapping_add(now.tv_nsec as u64);
        // Relaxed: a counter and a time for people to look at; only this peer writes them.
        let epoch = self.wide(peer::EPOCH);
        epoch.store(
            epoch.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Relaxed,
        );
        self.wide(peer::LAST_SEEN).store(now, Ordering::Relaxed);
    }

    /// The futex word of the ring peer -> host: changed when something was published or taken.
    pub fn send_futex(&self) -> &AtomicU32 {
        self.word(peer::SEND_DATA_FUTEX)
    }

    /// The futex word of the ring host -> peer.
    pub fn recv_futex(&self) -> &AtomicU32 {
        self.word(peer::RECV_DATA_FUTEX)
    }

    /// What the peer says about the slot that it is moving.
    pub(crate) fn claim(&self) -> Claim {
        claim::read(self.wide(peer::CLAIM))
    }

    /// The peer is about to move this slot, as a descriptor names it, between a free list and an owner.
    pub(crate) fn claim_slot(&self, slot: u32) {
        claim::slot(self.wide(peer::CLAIM), slot);
    }

    /// The peer moves no slot now, and will say so when it does.
    pub(crate) fn claim_nothing(&self) {
        claim::nothing(self.wide(peer::CLAIM));
    }

    /// A plugin took its place.
    pub(crate) fn enter(&self) {
        self.change(
            peer::FLAG_ACTIVE,
            peer::FLAG_RESERVED | peer::FLAG_DEAD | peer::FLAG_DYING,
        );
    }

    /// The plugin leaves in order.
    pub(crate) fn leave(&self) {
        self.change(peer::FLAG_DYING, 0);
    }

    /// Its end was seen. Returns whether it was not known before.
    pub(crate) fn bury(&self) -> bool {
        self.change(
            peer::FLAG_DEAD,
            peer::FLAG_ACTIVE | peer::FLAG_DYING | peer::FLAG_RESERVED,
        ) & peer::FLAG_DEAD
            == 0
    }

    /// Given out to a plugin that is about to be started.
    pub(crate) fn reserve(&self) {
        // Relaxed: the plugin does not run yet.
        if let Ok(id) = self
            .map
            .at::<AtomicU16>("peer entry", self.offset + peer::PEER_ID)
        {
            id.store(self.id, Ordering::Relaxed);
        }
        if let Ok(kind) = self
            .map
            .at::<AtomicU16>("peer entry", self.offset + peer::PEER_TYPE)
        {
            kind.store(1, Ordering::Relaxed);
        }
        self.wide(peer::EPOCH).store(0, Ordering::Relaxed);
        self.wide(peer::LAST_SEEN).store(0, Ordering::Relaxed);
        self.wide(peer::CLAIM).store(0, Ordering::Relaxed);
        // Release: with the flag everything above is visible.
        self.word(peer::FLAGS)
            .store(peer::FLAG_RESERVED, Ordering::Release);
    }

    /// Sets and clears flags in one step; returns what was there.
    fn change(&self, set: u32, clear: u32) -> u32 {
        let word = self.word(peer::FLAGS);
        // AcqRel: Release makes what was done before visible with the flag, Acquire what the other side did
        // before its own change (a host that buries sees the plugin's last steps). Relaxed otherwise: what was found
        // is only compared.
        let mut flags = word.load(Ordering::Relaxed);
        loop {
            match word.compare_exchange_weak(
                flags,
                flags & !clear | set,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(before) => return before,
                Err(now) => flags = now,
            }
        }
    }
}
