//! Answers of `unix_diag`.

use crate::sock::{Reply, parse_replies};

/// The first four bytes are the number of the request, the rest its answer.
pub fn netlink(data: &[u8]) {
    let Some((sequence, answer)) = data.split_first_chunk() else {
        return;
    };
    let mut replies = Vec::new();
    let whole = parse_replies(answer, u32::from_ne_bytes(*sequence), &mut replies);
    // No message is shorter than its header.
    assert!(replies.len() <= answer.len() / 16);
    if let Err(error) = whole {
        assert!(error.at < answer.len(), "{error}");
    }
    for reply in replies {
        if let Reply::Socket(socket) = reply {
            assert_ne!(socket.peer, Some(0), "0 stands for no peer");
        }
    }
}
