//! Message descriptors: the 64 bytes that go through a ring.

use crate::layout::desc;

/// Words of a descriptor.
pub(crate) const WORDS: usize = desc::SIZE / 8;

/// One message descriptor, as it stands in a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Unique within the session, growing.
    pub msg_id: u64,
    /// The channel; 0 is the control channel.
    pub channel_id: u32,
    /// The method, or the verb of a control message.
    pub method_id: u32,
    /// [`INLINE_SLOT`](desc::INLINE_SLOT), or `class << 29 | global slot index`.
    pub payload_slot: u32,
    /// The slot's generation when it was filled.
    pub payload_generation: u32,
    /// Bytes from the slot's start to the payload.
    pub payload_offset: u32,
    /// Bytes of payload.
    pub payload_len: u32,
    /// `FLAG_*` bits of [`desc`]; unknown ones are kept.
    pub flags: u32,
    /// Credits granted.
    pub credit_grant: u32,
    /// When the call ends, in nanoseconds; `u64::MAX` = never.
    pub deadline_ns: u64,
    /// A payload of up to 16 bytes.
    pub inline_payload: [u8; desc::INLINE_CAPACITY],
}

impl Default for Descriptor {
    /// An empty data message without a deadline.
    fn default() -> Self {
        Self {
            msg_id: 0,
            channel_id: 0,
            method_id: 0,
            payload_slot: desc::INLINE_SLOT,
            payload_generation: 0,
            payload_offset: 0,
            payload_len: 0,
            flags: desc::FLAG_DATA,
            credit_grant: 0,
            deadline_ns: u64::MAX,
            inline_payload: [0; desc::INLINE_CAPACITY],
        }
    }
}

/// Two fields of 32 bits in the order in which they stand in memory.
fn pair(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

fn unpair(word: u64) -> (u32, u32) {
    let (low, high) = (word as u32, (word >> 32) as u32);
    if cfg!(target_endian = "little") {
        (low, high)
    } else {
        (high, low)
    }
}

impl Descriptor {
    /// As it goes into a ring.
    pub(crate) fn to_words(self) -> [u64; WORDS] {
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&self.inline_payload[at..at + 8]);
            u64::from_ne_bytes(bytes)
        };
        [
            self.msg_id,
            pair(self.channel_id, self.method_id),
            pair(self.payload_slot, self.payload_generation),
            pair(self.payload_offset, self.payload_len),
            pair(self.flags, self.credit_grant),
            self.deadline_ns,
            word(0),
            word(8),
        ]
    }

    /// As it came out of a ring. Any bits are a descriptor; whether it makes sense is for its user to check.
    pub(crate) fn from_words(words: [u64; WORDS]) -> Self {
        let [msg_id, ids, slot, place, flags, deadline_ns, low, high] = words;
        let (channel_id, method_id) = unpair(ids);
        let (payload_slot, payload_generation) = unpair(slot);
        let (payload_offset, payload_len) = unpair(place);
        let (flags, credit_grant) = unpair(flags);
        let mut inline_payload = [0; desc::INLINE_CAPACITY];
        inline_payload[..8].copy_from_slice(&low.to_ne_bytes());
        inline_payload[8..].copy_from_slice(&high.to_ne_bytes());
        Self {
            msg_id,
            channel_id,
            method_id,
            payload_slot,
            payload_generation,
            payload_offset,
            payload_len,
            flags,
            credit_grant,
            deadline_ns,
            inline_payload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_format_says() {
        let descriptor = Descriptor {
            msg_id: 0x0101,
            channel_id: 0x0202,
            method_id: 0x0303,
            payload_slot: 0x0404,
            payload_generation: 0x0505,
            payload_offset: 0x0606,
            payload_len: 0x0707,
            flags: 0x0808,
            credit_grant: 0x0909,
            deadline_ns: 0x0a0a,
            inline_payload: *b"0123456789abcdef",
        };
        let words = descriptor.to_words();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let at = |offset: usize| u32::from_ne_bytes(bytes[offset..offset + 4].try_into().unwrap());
        assert_eq!(at(desc::MSG_ID), 0x0101);
        assert_eq!(at(desc::CHANNEL_ID), 0x0202);
        assert_eq!(at(desc::METHOD_ID), 0x0303);
        assert_eq!(at(desc::PAYLOAD_SLOT), 0x0404);
        assert_eq!(at(desc::PAYLOAD_GENERATION), 0x0505);
        assert_eq!(at(desc::PAYLOAD_OFFSET), 0x0606);
        assert_eq!(at(desc::PAYLOAD_LEN), 0x0707);
        assert_eq!(at(desc::FLAGS), 0x0808);
        assert_eq!(at(desc::CREDIT_GRANT), 0x0909);
        assert_eq!(at(desc::DEADLINE_NS), 0x0a0a);
        assert_eq!(&bytes[desc::INLINE_PAYLOAD..], b"0123456789abcdef");
        assert_eq!(Descriptor::from_words(words), descriptor);
    }
}
