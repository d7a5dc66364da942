//! Messages as users see them.

use crate::desc::Descriptor;
use crate::layout::desc;

/// A message: what stands in its descriptor beside the payload, and the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Unique within the session, growing.
    pub msg_id: u64,
    /// The channel; 0 is the control channel.
    pub channel_id: u32,
    /// The method, or the verb of a control message.
    pub method_id: u32,
    /// `FLAG_*` bits of [`layout::desc`](crate::layout::desc); unknown ones are kept.
    pub flags: u32,
    /// Credits granted.
    pub credit_grant: u32,
    /// When the call ends, in nanoseconds; `u64::MAX` = never.
    pub deadline_ns: u64,
    /// Up to 16 bytes travel in the descriptor, up to 16 MiB in a slot.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A data message without a deadline.
    pub fn data(msg_id: u64, channel_id: u32, method_id: u32, payload: Vec<u8>) -> Self {
        Self {
            msg_id,
            channel_id,
            method_id,
            flags: desc::FLAG_DATA,
            credit_grant: 0,
            deadline_ns: u64::MAX,
            payload,
        }
    }

    /// The descriptor, without anything about the payload.
    pub(crate) fn descriptor(&self) -> Descriptor {
        Descriptor {
            msg_id: self.msg_id,
            channel_id: self.channel_id,
            method_id: self.method_id,
            flags: self.flags,
            credit_grant: self.credit_grant,
            deadline_ns: self.deadline_ns,
            ..Descriptor::default()
        }
    }

    pub(crate) fn new(descriptor: &Descriptor, payload: Vec<u8>) -> Self {
        Self {
            msg_id: descriptor.msg_id,
            channel_id: descriptor.channel_id,
            method_id: descriptor.method_id,
            flags: descriptor.flags,
            credit_grant: descriptor.credit_grant,
            deadline_ns: descriptor.deadline_ns,
            payload,
        }
    }
}
