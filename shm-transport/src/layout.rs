//! The RAPAHUB 1.0 file format in numbers: sizes, field offsets and flag bits.
//!
//! The one thing that the writer of a hub (this crate) and a reader that must not trust the file
//! (the `shmtrace` daemon) share. All offsets are bytes; all integers are in native byte order.
//! Nothing here touches memory.

/// First eight bytes of every hub file.
pub const MAGIC: [u8; 8] = *b"RAPAHUB\0";
/// Major version this crate speaks; a file of another major version is refused.
pub const VERSION_MAJOR: u16 = 1;
/// Minor version this crate writes.
pub const VERSION_MINOR: u16 = 0;
/// `major << 16 | minor`, as it stands in the file.
pub const VERSION: u32 = (VERSION_MAJOR as u32) << 16 | VERSION_MINOR as u32;
/// Most peers that a hub can have.
pub const MAX_PEERS: u16 = 32;
/// Descriptors per ring in a hub created with the defaults.
pub const DEFAULT_RING_CAPACITY: u32 = 256;

/// The hub header at offset 0.
pub mod hub {
    /// Bytes of the header.
    pub const SIZE: usize = 256;
    /// `[u8; 8]`, see [`MAGIC`](super::MAGIC).
    pub const MAGIC: usize = 0;
    /// `u32`, `major << 16 | minor`.
    pub const VERSION: usize = 8;
    /// `u32`, feature flags, 0 today.
    pub const FLAGS: usize = 12;
    /// `u16`, 1..=32.
    pub const MAX_PEERS: usize = 16;
    /// `u16` atomic.
    pub const ACTIVE_PEERS: usize = 18;
    /// `u16` atomic, the next peer id.
    pub const PEER_ID_COUNTER: usize = 20;
    /// `u64` atomic, bytes of the file in use.
    pub const CURRENT_SIZE: usize = 24;
    /// `u32` atomic.
    pub const EXTENT_COUNT: usize = 32;
    /// `u32`, a power of two.
    pub const RING_CAPACITY: usize = 36;
    /// `u64`, file offset of the peer table.
    pub const PEER_TABLE_OFFSET: usize = 40;
    /// `u64`, file offset of the first ring.
    pub const RING_REGION_OFFSET: usize = 48;
    /// `u64`, file offset of the size class headers.
    pub const SIZE_CLASS_OFFSET: usize = 56;
    /// `u64`, file offset of the first extent.
    pub const EXTENT_REGION_OFFSET: usize = 64;
}

/// An entry of the peer table.
pub mod peer {
    /// Bytes of an entry.
    pub const SIZE: usize = 64;
    /// `u16`.
    pub const PEER_ID: usize = 0;
    /// `u16`; differs between rapace versions, decide nothing by it.
    pub const PEER_TYPE: usize = 2;
    /// `u32` atomic, `FLAG_*` bits.
    pub const FLAGS: usize = 4;
    /// `u64` atomic, heartbeat counter.
    pub const EPOCH: usize = 8;
    /// `u64` atomic, nanoseconds since the Unix epoch.
    pub const LAST_SEEN: usize = 16;
    /// `u64`, file offset of the ring peer -> host.
    pub const SEND_RING_OFFSET: usize = 24;
    /// `u64`, file offset of the ring host -> peer.
    pub const RECV_RING_OFFSET: usize = 32;
    /// `u32` atomic, futex word of the send ring.
    pub const SEND_DATA_FUTEX: usize = 40;
    /// `u32` atomic, futex word of the recv ring.
    pub const RECV_DATA_FUTEX: usize = 44;
    /// `u64` atomic, in what the format leaves as padding: [`CLAIM_ANNOUNCED`] and, in the lower half, the slot that
    /// the peer is taking off a free list or putting back, as a descriptor names it; `u32::MAX` for none. 0 for
    /// peers that do not say (rapace).
    pub const CLAIM: usize = 48;

    /// The peer says in [`CLAIM`] which slot it moves.
    pub const CLAIM_ANNOUNCED: u64 = 1 << 63;

    /// The peer is attached.
    pub const FLAG_ACTIVE: u32 = 1;
    /// The peer is shutting down.
    pub const FLAG_DYING: u32 = 1 << 1;
    /// The host saw the peer's end.
    pub const FLAG_DEAD: u32 = 1 << 2;
    /// The id was given out and is not yet claimed by a plugin.
    pub const FLAG_RESERVED: u32 = 1 << 3;
}

/// A ring: header, then `capacity` descriptors.
pub mod ring {
    /// Bytes of the header.
    pub const HEADER_SIZE: usize = 192;
    /// `u64` atomic, written by the producer.
    pub const VISIBLE_HEAD: usize = 0;
    /// `u64` atomic, written by the consumer.
    pub const TAIL: usize = 64;
    /// `u32`, written at creation only.
    pub const CAPACITY: usize = 128;

    /// Bytes of a whole ring of `capacity` descriptors.
    pub const fn size(capacity: u32) -> usize {
        HEADER_SIZE + capacity as usize * super::desc::SIZE
    }
}

/// A message descriptor.
pub mod desc {
    /// Bytes of a descriptor.
    pub const SIZE: usize = 64;
    /// `u64`, unique per session, monotonic.
    pub const MSG_ID: usize = 0;
    /// `u32`, 0 is the control channel.
    pub const CHANNEL_ID: usize = 8;
    /// `u32`, method id or control verb.
    pub const METHOD_ID: usize = 12;
    /// `u32`, `INLINE_SLOT` or `class << 29 | global slot index`.
    pub const PAYLOAD_SLOT: usize = 16;
    /// `u32`.
    pub const PAYLOAD_GENERATION: usize = 20;
    /// `u32`.
    pub const PAYLOAD_OFFSET: usize = 24;
    /// `u32`, bytes.
    pub const PAYLOAD_LEN: usize = 28;
    /// `u32`, `FLAG_*` bits; unknown bits are kept.
    pub const FLAGS: usize = 32;
    /// `u32`.
    pub const CREDIT_GRANT: usize = 36;
    /// `u64`, `u64::MAX` = none.
    pub const DEADLINE_NS: usize = 40;
    /// `[u8; 16]`.
    pub const INLINE_PAYLOAD: usize = 48;

    /// Bytes of payload that fit into the descriptor itself.
    pub const INLINE_CAPACITY: usize = 16;
    /// `payload_slot` of a message whose payload is inline.
    pub const INLINE_SLOT: u32 = u32::MAX;
    /// Shift of the size class within `payload_slot`.
    pub const SLOT_CLASS_SHIFT: u32 = 29;

    /// Carries data.
    pub const FLAG_DATA: u32 = 1;
    /// Control message.
    pub const FLAG_CONTROL: u32 = 2;
    /// End of stream.
    pub const FLAG_EOS: u32 = 4;
    /// Cancels the call.
    pub const FLAG_CANCEL: u32 = 8;
    /// Error response.
    pub const FLAG_ERROR: u32 = 16;
    /// Goes before others.
    pub const FLAG_HIGH_PRIORITY: u32 = 32;
    /// Grants credits.
    pub const FLAG_CREDITS: u32 = 64;
    /// Metadata without data.
    pub const FLAG_METADATA_ONLY: u32 = 128;
}

/// A size class header.
pub mod class {
    /// Number of size classes.
    pub const COUNT: usize = 5;
    /// Bytes of a header.
    pub const SIZE: usize = 192;
    /// `u32`, bytes of a slot.
    pub const SLOT_SIZE: usize = 0;
    /// `u32` atomic.
    pub const TOTAL_SLOTS: usize = 4;
    /// `u64` atomic, `tag << 32 | global index of the first free slot`.
    pub const FREE_HEAD: usize = 8;
    /// `u32` atomic, futex word bumped and woken when a slot is freed.
    pub const SLOT_AVAILABLE: usize = 16;
    /// `u8`, log2 of the slots per extent.
    pub const EXTENT_SLOT_SHIFT: usize = 20;
    /// `u8`.
    pub const EXTENT_COUNT: usize = 21;
    /// `[u64; 16]` atomic, file offset of each extent, 0 = none.
    pub const EXTENT_OFFSETS: usize = 24;
    /// Most extents of a class.
    pub const MAX_EXTENTS: usize = 16;
    /// Index in `free_head` that means "no free slot".
    pub const NO_SLOT: u32 = u32::MAX;

    /// `(slot size in bytes, slots)` of each class at creation.
    pub const DEFAULTS: [(u32, u32); COUNT] = [
        (1 << 10, 1024),
        (16 << 10, 256),
        (256 << 10, 32),
        (4 << 20, 8),
        (16 << 20, 4),
    ];
}

/// An extent: header, slot metadata, slot data.
pub mod extent {
    /// Bytes of the header.
    pub const HEADER_SIZE: usize = 64;
    /// `u8`.
    pub const SIZE_CLASS: usize = 0;
    /// `u32`.
    pub const SLOT_COUNT: usize = 4;
    /// `u64` atomic.
    pub const NEXT_EXTENT_OFFSET: usize = 8;
    /// `u32`.
    pub const BASE_GLOBAL_INDEX: usize = 16;
    /// `u32`, from the extent's start.
    pub const META_OFFSET: usize = 24;
    /// `u32`, from the extent's start.
    pub const DATA_OFFSET: usize = 28;
}

/// Where the fields of size class and extent headers stand. Hubs of one version differ in it: rapace 0.3 and 0.4 write
/// the layout of [`class`] and [`extent`], rapace 0.5 moved fields without a new version number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotFields {
    /// In a size class header: `u32` atomic, all slots.
    pub total_slots: usize,
    /// In a size class header: `u64` atomic, the free stack.
    pub free_head: usize,
    /// In a size class header: `u32` atomic, the futex word.
    pub slot_available: usize,
    /// In a size class header: log2 of the slots per extent, in the lowest byte.
    pub extent_slot_shift: usize,
    /// In an extent header: `u32`.
    pub slot_count: usize,
    /// In an extent header: `u32`.
    pub meta_offset: usize,
    /// In an extent header: `u32`.
    pub data_offset: usize,
}

impl SlotFields {
    /// The format as documented.
    pub const STANDARD: Self = Self {
        total_slots: class::TOTAL_SLOTS,
        free_head: class::FREE_HEAD,
        slot_available: class::SLOT_AVAILABLE,
        extent_slot_shift: class::EXTENT_SLOT_SHIFT,
        slot_count: extent::SLOT_COUNT,
        meta_offset: extent::META_OFFSET,
        data_offset: extent::DATA_OFFSET,
    };

    /// As rapace 0.5 has it. Beside these, `u32` slots per extent stand at 4 of a size class header; an extent header
    /// has `u32` base index at 4 and `u32` slot size at 12.
    pub const RAPACE_05: Self = Self {
        total_slots: 12,
        free_head: 16,
        slot_available: 152,
        extent_slot_shift: 8,
        slot_count: 8,
        meta_offset: 16,
        data_offset: 20,
    };
}

/// Metadata of one slot.
pub mod slot {
    /// Bytes of an entry.
    pub const META_SIZE: usize = 16;
    /// `u32`.
    pub const GENERATION: usize = 0;
    /// `u32`, one of `STATE_*`.
    pub const STATE: usize = 4;
    /// `u32`, global index of the next free slot.
    pub const NEXT_FREE: usize = 8;
    /// `u32`, peer id, `OWNER_NONE` = nobody.
    pub const OWNER_PEER: usize = 12;

    /// On the free list.
    pub const STATE_FREE: u32 = 0;
    /// Taken by a sender that still fills it.
    pub const STATE_ALLOCATED: u32 = 1;
    /// Referred to by a descriptor on its way.
    pub const STATE_IN_FLIGHT: u32 = 2;
    /// `owner_peer` of a slot that nobody owns.
    pub const OWNER_NONE: u32 = u32::MAX;
}
