//! Both sides of a lane in one process: what is dropped, full, damaged or dead.

mod cancel;
mod scribble;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shm_transport::layout::{SlotFields, desc};
use shm_transport::{
    Descriptor, Frame, Hub, HubConfig, HubHost, HubHostPeerTransport, HubPeerTransport, RingFault,
    SlotError, TransportError, host_owner, host_section,
};
use tempfile::TempDir;
use tokio::time::timeout;

/// A hub with one peer, and the plugin's side of it.
struct Pair {
    host: Arc<HubHost>,
    peer: HubHostPeerTransport,
    plugin: HubPeerTransport,
    _folder: TempDir,
}

fn pair_with(ring_capacity: u32, fields: SlotFields) -> Pair {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("hub.shm");
    let config = HubConfig {
        max_peers: 2,
        ring_capacity,
    };
    let host = HubHost::new(Hub::create_with(&path, config, fields).unwrap());
    let (peer, ticket) = host.add_peer("dodeca-mod-test").unwrap();
    let fd: OwnedFd = ticket.doorbell;
    let plugin = HubPeerTransport::open_owned(&path, ticket.peer_id, fd).unwrap();
    Pair {
        host,
        peer,
        plugin,
        _folder: folder,
    }
}

fn pair(ring_capacity: u32) -> Pair {
    pair_with(ring_capacity, SlotFields::STANDARD)
}

fn message(id: u64, size: usize) -> Frame {
    Frame::data(
        id,
        5,
        6,
        (0..size).map(|at| (at as u64 ^ id) as u8).collect(),
    )
}

/// So long that nothing healthy takes it, even on a busy machine.
const LONG: Duration = Duration::from_secs(20);
/// So short that a wait is dropped in the midst of it.
const SHORT: Duration = Duration::from_millis(20);

/// xorshift64*: the same drops in each run.
fn random(state: &mut u64, below: u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d) % below
}

#[tokio::test]
async fn every_size_arrives_both_ways_and_leaves_its_slot_free() {
    for fields in [SlotFields::STANDARD, SlotFields::RAPACE_05] {
        let pair = pair_with(8, fields);
        for (id, size) in [0, 1, 16, 17, 1024, 1025, 100_000, 1 << 20, 16 << 20]
            .into_iter()
            .enumerate()
        {
            let sent = message(id as u64, size);
            pair.peer.send(&sent).await.unwrap();
            let received = timeout(LONG, pair.plugin.recv()).await.unwrap().unwrap();
            assert!(received == sent, "{size} bytes to the plugin");
            pair.plugin.send(&received).await.unwrap();
            let back = timeout(LONG, pair.peer.recv()).await.unwrap().unwrap();
            assert!(back == sent, "{size} bytes back");
        }
        let slots = pair.host.hub().allocator().slot_status().total();
        assert_eq!(slots.free, slots.total);
        let error = pair
            .peer
            .send(&message(0, (16 << 20) + 1))
            .await
            .unwrap_err();
        assert!(matches!(
            error,
            TransportError::Slot(SlotError::TooLarge { .. })
        ));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn senders_of_many_tasks_and_a_full_ring_keep_every_message() {
    let pair = Arc::new(pair(4));
    let mut senders = Vec::new();
    for task in 0..4_u64 {
        let pair = Arc::clone(&pair);
        senders.push(tokio::spawn(async move {
            for id in 0..500 {
                pair.peer
                    .send(&message(task * 1000 + id, (id % 40) as usize))
                    .await
                    .unwrap();
            }
        }));
    }
    let mut next = [0_u64; 4];
    for _ in 0..2000 {
        let received = timeout(LONG, pair.plugin.recv()).await.unwrap().unwrap();
        let (task, id) = (received.msg_id / 1000, received.msg_id % 1000);
        assert_eq!(id, next[task as usize], "in the order of its sender");
        next[task as usize] += 1;
        assert_eq!(received, message(received.msg_id, (id % 40) as usize));
    }
    for sender in senders {
        sender.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_without_a_slot_waits_for_one() {
    let pair = Arc::new(pair(64));
    // Four slots of 16 MiB are all that fit.
    let sending = tokio::spawn({
        let pair = Arc::clone(&pair);
        async move {
            for id in 0..6 {
                pair.peer.send(&message(id, 5 << 20)).await.unwrap();
            }
        }
    });
    tokio::time::sleep(SHORT).await;
    for id in 0..6 {
        let received = timeout(LONG, pair.plugin.recv()).await.unwrap().unwrap();
        assert!(received == message(id, 5 << 20));
    }
    timeout(LONG, sending).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_lost_signal_is_repeated_by_a_later_message() {
    let pair = pair(8);
    pair.peer.send(&message(0, 8)).await.unwrap();
    // Somebody steals the token.
    assert_eq!(pair.plugin.doorbell_pending_bytes(), 1);
    assert_eq!(pair.plugin.doorbell().drain().unwrap(), 1);
    tokio::time::sleep(SHORT).await;
    pair.peer.send(&message(1, 8)).await.unwrap();
    assert_eq!(pair.plugin.doorbell_pending_bytes(), 1);
}

#[tokio::test]
async fn a_dead_peer_ends_waits_and_gives_its_slots_back() {
    let pair = pair(2);
    let allocator = pair.host.hub().allocator();
    // One that it filled, one that it was still filling, one that was on its way to it.
    pair.plugin.send(&message(0, 100)).await.unwrap();
    allocator.alloc(100, 0).unwrap();
    pair.peer.send(&message(1, 100)).await.unwrap();
    pair.peer.send(&message(2, 8)).await.unwrap();
    // A slot of another peer stays.
    let other = allocator.alloc(100, host_owner(1)).unwrap();
    let burying = async {
        tokio::time::sleep(SHORT).await;
        pair.peer.mark_dead().await
    };
    let third = message(3, 8);
    let (sent, freed) = tokio::join!(timeout(LONG, pair.peer.send(&third)), burying);
    assert!(matches!(sent, Ok(Err(TransportError::PeerGone(0)))));
    assert_eq!(freed, 3);
    assert!(matches!(
        pair.peer.recv().await,
        Err(TransportError::PeerGone(0))
    ));
    let slots = allocator.slot_status().total();
    assert_eq!((slots.allocated, slots.in_flight), (1, 0));
    allocator.free_unsent(other).unwrap();
    assert!(pair.peer.peer().is_dead());
}

#[tokio::test]
async fn an_id_is_given_out_again_only_after_its_peer_is_dead() {
    let pair = pair(2);
    let (second, _ticket) = pair.host.add_peer("second").unwrap();
    assert_eq!(second.peer_id(), 1);
    assert!(pair.host.add_peer("third").is_err());
    second.mark_dead().await;
    assert!(pair.host.add_peer("third").is_err(), "still held");
    drop(second);
    let (third, _ticket) = pair.host.add_peer("third").unwrap();
    assert_eq!(third.peer_id(), 1);
    let status = pair.host.hub().send_ring(1).unwrap().ring_status();
    assert_eq!((status.visible_head, status.tail), (0, 0));
}

#[tokio::test]
async fn a_second_producer_is_an_error() {
    let pair = pair(8);
    pair.peer.send(&message(0, 8)).await.unwrap();
    let ring = pair.host.hub().recv_ring(0).unwrap();
    assert!(ring.enqueue(&Descriptor::default()));
    assert!(matches!(
        pair.peer.send(&message(1, 8)).await,
        Err(TransportError::RingCorrupt(RingFault::Moved {
            ours: 1,
            found: 2
        }))
    ));
}

#[tokio::test]
async fn bad_messages_are_skipped_one_by_one() {
    let pair = pair(8);
    let ring = pair.host.hub().send_ring(0).unwrap();
    let bad = [
        Descriptor {
            payload_len: 17,
            ..Descriptor::default()
        },
        Descriptor {
            payload_slot: 7 << desc::SLOT_CLASS_SHIFT | 3,
            ..Descriptor::default()
        },
        Descriptor {
            payload_slot: 5_000_000,
            ..Descriptor::default()
        },
        Descriptor {
            payload_slot: 3,
            payload_generation: 77,
            ..Descriptor::default()
        },
    ];
    for descriptor in &bad {
        assert!(ring.enqueue(descriptor));
    }
    for descriptor in &bad {
        let error = timeout(LONG, pair.peer.recv()).await.unwrap().unwrap_err();
        assert!(
            matches!(
                error,
                TransportError::InlineLength(17) | TransportError::Slot(_)
            ),
            "{descriptor:?} gave {error}"
        );
    }
    assert_eq!(ring.ring_status().len, 0);
}

#[tokio::test]
async fn diagnostics_look_as_they_always_did() {
    let pair = pair(256);
    pair.peer.send(&message(0, 100)).await.unwrap();
    assert_eq!(
        host_section(pair.host.hub(), [&pair.peer]),
        "--- Hub Transport Diagnostics ---\n\
         HubAllocator slots: 1324 total, 1323 free, 0 allocated, 1 in_flight\n\
         \x20 class[0] (   1024B): 1024 total, 1023 free, 0 allocated, 1 in_flight\n\
         \x20 class[1] (  16384B): 256 total, 256 free, 0 allocated, 0 in_flight\n\
         \x20 class[2] ( 262144B): 32 total, 32 free, 0 allocated, 0 in_flight\n\
         \x20 class[3] (4194304B): 8 total, 8 free, 0 allocated, 0 in_flight\n\
         \x20 class[4] (16777216B): 4 total, 4 free, 0 allocated, 0 in_flight\n\
         \x20 peer[0] \"dodeca-mod-test\": recv_ring(head=1 tail=0 len=1/256) \
         send_ring(head=0 tail=0 len=0/256) doorbell_pending=0\n\
         --- End Hub Diagnostics ---\n"
    );
    assert_eq!(pair.plugin.doorbell_pending_bytes(), 1);
}

#[tokio::test]
async fn a_death_is_not_held_up_by_a_recv_that_nobody_polls() {
    let pair = pair(2);
    let mut parked = std::pin::pin!(pair.peer.recv());
    assert!(timeout(SHORT, parked.as_mut()).await.is_err());
    timeout(LONG, pair.peer.mark_dead()).await.unwrap();
    assert!(matches!(
        timeout(LONG, parked).await.unwrap(),
        Err(TransportError::PeerGone(0))
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_in_the_midst_of_sends_writes_into_no_other_message() {
    for _ in 0..20 {
        let pair = Arc::new(pair(64));
        let (other, ticket) = pair.host.add_peer("other").unwrap();
        let hub = pair.host.hub().path().to_owned();
        let plugin = HubPeerTransport::open_owned(hub, 1, ticket.doorbell).unwrap();
        let sending = tokio::spawn({
            let pair = Arc::clone(&pair);
            async move { while pair.peer.send(&message(1, 200_000)).await.is_ok() {} }
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        pair.peer.mark_dead().await;
        for id in 100..140 {
            let sent = message(id, 200_000);
            other.send(&sent).await.unwrap();
            let received = timeout(LONG, plugin.recv()).await.unwrap().unwrap();
            assert!(received == sent, "another's bytes in message {id}");
        }
        timeout(LONG, sending).await.unwrap().unwrap();
        let slots = pair.host.hub().allocator().slot_status().total();
        assert_eq!(slots.free, slots.total);
    }
}
