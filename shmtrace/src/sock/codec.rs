//! The `unix_diag` messages of `sock_diag(7)`, as bytes.

use thiserror::Error;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const AF_UNIX: u8 = 1;

const SHOW_PEER: u32 = 0x04;
const SHOW_QUEUES: u32 = 0x10;
const ATTRIBUTE_PEER: u16 = 2;
const ATTRIBUTE_QUEUES: u16 = 4;

/// Bytes of a netlink message header.
const HEADER: usize = 16;
/// Bytes of `unix_diag_req`.
const REQUEST: usize = 24;
/// Bytes of `unix_diag_msg`.
const MESSAGE: usize = 16;

/// A unix socket as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnixSocket {
    /// Its inode number.
    pub inode: u32,
    /// `SOCK_STREAM` 1, `SOCK_DGRAM` 2, `SOCK_SEQPACKET` 5.
    pub kind: u8,
    /// The socket it is connected to.
    pub peer: Option<u32>,
    /// Bytes of the first datagram that waits to be received here; 0 = none (or an empty one).
    pub receivable: u32,
    /// Bytes of memory that datagrams sent from here occupy until they are received.
    pub unreceived: u32,
}

/// One message of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// A socket.
    Socket(UnixSocket),
    /// The end of a dump.
    Done,
    /// An errno, positive; 0 is an acknowledgement.
    Error(i32),
}

/// An answer that is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("malformed unix_diag answer at byte {at}")]
pub struct CodecError {
    /// Where.
    pub at: usize,
}

/// A request for one socket, or for all (`inode` `None`).
pub(super) fn request(inode: Option<u32>, sequence: u32) -> [u8; HEADER + REQUEST] {
    let flags = if inode.is_some() {
        NLM_F_REQUEST
    } else {
        NLM_F_REQUEST | NLM_F_DUMP
    };
    let mut bytes = [0; HEADER + REQUEST];
    bytes[0..4].copy_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
    bytes[16] = AF_UNIX;
    bytes[20..24].copy_from_slice(&u32::MAX.to_ne_bytes()); // all states
    bytes[24..28].copy_from_slice(&inode.unwrap_or(0).to_ne_bytes());
    bytes[28..32].copy_from_slice(&(SHOW_PEER | SHOW_QUEUES).to_ne_bytes());
    bytes[32..40].copy_from_slice(&u64::MAX.to_ne_bytes()); // no cookie
    bytes
}

/// The messages in one datagram of the kernel that answer request `sequence`; others are left out.
pub fn parse_replies(
    bytes: &[u8],
    sequence: u32,
    replies: &mut Vec<Reply>,
) -> Result<(), CodecError> {
    let mut at = 0;
    while at < bytes.len() {
        let error = CodecError { at };
        let length = u32_at(bytes, at).ok_or(error)? as usize;
        let kind = u16_at(bytes, at + 4).ok_or(error)?;
        let answers = u32_at(bytes, at + 8).ok_or(error)?;
        if length < HEADER {
            return Err(error);
        }
        let message = at
            .checked_add(length)
            .and_then(|end| bytes.get(at + HEADER..end))
            .ok_or(error)?;
        if answers == sequence {
            match kind {
                SOCK_DIAG_BY_FAMILY => {
                    replies.push(Reply::Socket(parse_socket(message).ok_or(error)?));
                }
                NLMSG_DONE => replies.push(Reply::Done),
                NLMSG_ERROR => {
                    let errno = u32_at(message, 0).ok_or(error)?.cast_signed();
                    replies.push(Reply::Error(errno.saturating_neg()));
                }
                _ => {}
            }
        }
        at += length.next_multiple_of(4);
    }
    Ok(())
}

fn parse_socket(message: &[u8]) -> Option<UnixSocket> {
    let mut socket = UnixSocket {
        inode: u32_at(message, 4)?,
        kind: *message.get(1)?,
        peer: None,
        receivable: 0,
        unreceived: 0,
    };
    let mut attributes = message.get(MESSAGE..)?;
    while attributes.len() >= 4 {
        let length = usize::from(u16_at(attributes, 0)?);
        let value = attributes.get(4..length)?;
        match u16_at(attributes, 2)? {
            ATTRIBUTE_PEER => socket.peer = Some(u32_at(value, 0)?).filter(|inode| *inode != 0),
            ATTRIBUTE_QUEUES => {
                socket.receivable = u32_at(value, 0)?;
                socket.unreceived = u32_at(value, 4)?;
            }
            _ => {}
        }
        attributes = attributes
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Some(socket)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(
        bytes.get(at..at.checked_add(2)?)?.try_into().ok()?,
    ))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An answer with one socket, as the kernel writes it.
    pub(crate) fn answer(sequence: u32) -> Vec<u8> {
        let mut bytes = vec![0_u8; HEADER + MESSAGE];
        bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes[16] = AF_UNIX;
        bytes[17] = 2;
        bytes[20..24].copy_from_slice(&77_u32.to_ne_bytes());
        for (kind, words) in [
            (0_u16, vec![1_u32]),
            (ATTRIBUTE_PEER, vec![78]),
            (ATTRIBUTE_QUEUES, vec![1, 768]),
        ] {
            bytes.extend((4 + 4 * words.len() as u16).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        }
        let length = bytes.len() as u32;
        bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_socket_is_read_with_peer_and_queues() {
        let mut replies = Vec::new();
        parse_replies(&answer(5), 5, &mut replies).unwrap();
        let expected = UnixSocket {
            inode: 77,
            kind: 2,
            peer: Some(78),
            receivable: 1,
            unreceived: 768,
        };
        assert_eq!(replies, [Reply::Socket(expected)]);
    }

    #[test]
    fn an_answer_to_another_request_is_left_out() {
        let mut replies = Vec::new();
        parse_replies(&answer(5), 6, &mut replies).unwrap();
        assert_eq!(replies, []);
    }

    #[test]
    fn a_cut_answer_is_an_error_wherever_it_is_cut() {
        let whole = answer(5);
        for end in 1..whole.len() {
            assert!(
                parse_replies(&whole[..end], 5, &mut Vec::new()).is_err(),
                "{end}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_parser_fail_otherwise(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _any = parse_replies(&bytes, 0, &mut Vec::new());
        }

        #[test]
        fn one_changed_byte_is_survived(at in 0_usize..64, value: u8) {
            let mut bytes = answer(0);
            let at = at % bytes.len();
            bytes[at] = value;
            let _any = parse_replies(&bytes, 0, &mut Vec::new());
        }
    }
}
