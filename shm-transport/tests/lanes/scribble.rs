//! An enemy that writes into the file while both sides use it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use tokio::time::timeout;

use crate::{message, pair, random};

/// Where the first extent's slots end: beyond it there is only payload.
const STRUCTURE: u64 = 256 + 2 * 64 + 4 * (192 + 8 * 64) + 5 * 192 + 64 + 1024 * 16;
/// Nothing that works takes longer; what waits for ever is dropped.
const PATIENCE: Duration = Duration::from_millis(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_change_under_a_lane_give_errors_or_messages() {
    let mut state = 0xbad;
    let (mut failed, mut went_well) = (0, 0);
    for round in 0..150 {
        let pair = pair(8);
        let file = File::options()
            .write(true)
            .open(pair.host.hub().path())
            .unwrap();
        for id in 0..6 {
            for _ in 0..round % 4 * 3 {
                let value = match random(&mut state, 3) {
                    0 => u32::MAX,
                    1 => random(&mut state, 64) as u32,
                    _ => random(&mut state, 1 << 32) as u32,
                };
                // Where most can happen: the peer's entry and rings, the first class and its first slots, anywhere.
                let (from, to) = match random(&mut state, 3) {
                    0 => (256, 1_792),
                    1 => (3_200, 3_392),
                    _ => (0, STRUCTURE),
                };
                let at = from + random(&mut state, (to - from) / 4) * 4;
                file.write_all_at(&value.to_ne_bytes(), at).unwrap();
            }
            let sent = message(id, random(&mut state, 3_000) as usize);
            for result in [
                timeout(PATIENCE, pair.peer.send(&sent)).await,
                timeout(PATIENCE, pair.plugin.send(&sent)).await,
            ] {
                match result {
                    Ok(Ok(())) => went_well += 1,
                    Ok(Err(_)) | Err(_) => failed += 1,
                }
            }
            for result in [
                timeout(PATIENCE, pair.peer.recv()).await,
                timeout(PATIENCE, pair.plugin.recv()).await,
            ] {
                match result {
                    Ok(Ok(_)) => went_well += 1,
                    Ok(Err(_)) | Err(_) => failed += 1,
                }
            }
        }
        pair.peer.mark_dead().await;
    }
    // Both happen, or it looks at nothing.
    assert!(
        failed > 50 && went_well > 500,
        "{failed} failed, {went_well} went well"
    );
}
