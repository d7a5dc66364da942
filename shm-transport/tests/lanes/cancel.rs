//! Calls that are dropped, at each of their waits and at random: nothing is lost, doubled or kept.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::{LONG, Pair, SHORT, message, pair, random};

/// Polls a call until it waits, and a little longer.
async fn waits<T>(call: &mut (impl Future<Output = T> + Unpin)) {
    assert!(timeout(SHORT, call).await.is_err(), "it had to wait");
}

fn in_use(pair: &Pair) -> u32 {
    let slots = pair.host.hub().allocator().slot_status().total();
    slots.total - slots.free
}

#[tokio::test]
async fn a_send_dropped_while_it_waits_for_a_slot() {
    let pair = pair(8);
    let allocator = pair.host.hub().allocator();
    let held: Vec<_> = (0..4)
        .map(|_| allocator.alloc(5 << 20, 99).unwrap())
        .collect();
    let large = message(1, 5 << 20);
    waits(&mut pin!(pair.peer.send(&large))).await;
    assert_eq!(in_use(&pair), 4);
    allocator.free_unsent(held[0]).unwrap();
    assert_eq!(pair.host.hub().recv_ring(0).unwrap().ring_status().len, 0);
    // The slot that came back is not promised to the dropped call.
    pair.peer.send(&message(2, 5 << 20)).await.unwrap();
    assert_eq!(pair.plugin.recv().await.unwrap().msg_id, 2);
    assert_eq!(in_use(&pair), 3);
}

#[tokio::test]
async fn a_send_dropped_while_it_waits_for_its_turn() {
    let pair = pair(2);
    for id in 0..2 {
        pair.peer.send(&message(id, 30)).await.unwrap();
    }
    let (third, fourth) = (message(2, 30), message(3, 30));
    let mut waiting_for_space = pin!(pair.peer.send(&third));
    waits(&mut waiting_for_space).await;
    waits(&mut pin!(pair.peer.send(&fourth))).await;
    assert_eq!(in_use(&pair), 3, "the slot of the dropped one is back");
    assert_eq!(pair.plugin.recv().await.unwrap().msg_id, 0);
    timeout(LONG, waiting_for_space).await.unwrap().unwrap();
    for id in 1..3 {
        assert_eq!(pair.plugin.recv().await.unwrap(), message(id, 30));
    }
    assert_eq!(in_use(&pair), 0);
}

#[tokio::test]
async fn a_send_dropped_while_it_waits_for_space_gives_up_its_turn() {
    let pair = pair(2);
    for id in 0..2 {
        pair.peer.send(&message(id, 30)).await.unwrap();
    }
    let (third, fourth) = (message(2, 30), message(3, 30));
    let mut next = pin!(pair.peer.send(&fourth));
    {
        let mut waiting_for_space = pin!(pair.peer.send(&third));
        waits(&mut waiting_for_space).await;
        waits(&mut next).await;
    }
    assert_eq!(pair.plugin.recv().await.unwrap().msg_id, 0);
    timeout(LONG, next).await.unwrap().unwrap();
    assert_eq!(pair.plugin.recv().await.unwrap().msg_id, 1);
    assert_eq!(pair.plugin.recv().await.unwrap().msg_id, 3);
    assert_eq!(in_use(&pair), 0);
}

#[tokio::test]
async fn a_recv_dropped_while_it_waits_for_its_turn_or_for_the_bell() {
    let pair = pair(8);
    let mut second = pin!(pair.plugin.recv());
    {
        let mut first = pin!(pair.plugin.recv());
        waits(&mut first).await;
        waits(&mut pin!(pair.plugin.recv())).await;
        waits(&mut second).await;
        // The signal is there and the first was not polled since: it is dropped with the wakeup on its way.
        pair.peer.send(&message(7, 30)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let received = timeout(LONG, second).await.unwrap().unwrap();
    assert_eq!(received, message(7, 30));
    assert_eq!(in_use(&pair), 0);
}

#[tokio::test]
async fn a_dropped_recv_loses_nothing() {
    let pair = pair(8);
    assert!(timeout(SHORT, pair.plugin.recv()).await.is_err());
    for id in 0..200 {
        // Dropped before, while and after a message comes.
        let _maybe = timeout(Duration::ZERO, pair.plugin.recv())
            .await
            .map(|early| {
                panic!("nothing was sent, but {early:?} came");
            });
        pair.peer.send(&message(id, 30)).await.unwrap();
        let received = timeout(LONG, pair.plugin.recv()).await.unwrap().unwrap();
        assert_eq!(received, message(id, 30));
    }
}

#[tokio::test]
async fn a_dropped_send_sends_nothing_and_keeps_no_slot() {
    let pair = pair(2);
    for id in 0..2 {
        pair.peer.send(&message(id, 30)).await.unwrap();
    }
    // Full: it waits for space, and is dropped while it does.
    assert!(
        timeout(SHORT, pair.peer.send(&message(99, 30)))
            .await
            .is_err()
    );
    assert_eq!(
        pair.host.hub().allocator().slot_status().total().in_flight,
        2
    );
    for id in 0..2 {
        let received = timeout(LONG, pair.plugin.recv()).await.unwrap().unwrap();
        assert_eq!(received, message(id, 30));
    }
    pair.peer.send(&message(2, 30)).await.unwrap();
    let received = timeout(LONG, pair.plugin.recv()).await.unwrap().unwrap();
    assert_eq!(received, message(2, 30));
    assert_eq!(
        pair.host.hub().allocator().slot_status().total().in_flight,
        0
    );
}

/// Polls a call now and then and drops it after a random number of polls; `None` when it was dropped.
async fn dropped_at_random<T>(state: &mut u64, call: impl Future<Output = T>) -> Option<T> {
    let mut polls = random(state, 4);
    let mut call = std::pin::pin!(call);
    std::future::poll_fn(move |context| {
        if let std::task::Poll::Ready(done) = call.as_mut().poll(context) {
            return std::task::Poll::Ready(Some(done));
        }
        if polls == 0 {
            return std::task::Poll::Ready(None);
        }
        polls -= 1;
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_dropped_at_random_lose_and_double_nothing() {
    const MESSAGES: u64 = 3_000;
    // A ring of 2 is nearly always full or empty, so most calls wait when they are dropped.
    let pair = Arc::new(pair(2));
    let sending = tokio::spawn({
        let pair = Arc::clone(&pair);
        async move {
            let (mut state, mut dropped) = (0x5eed, 0);
            for id in 0..MESSAGES {
                let message = message(id, (id % 5 * 10) as usize);
                // A call that was dropped has sent nothing, so it is made again.
                while dropped_at_random(&mut state, pair.peer.send(&message))
                    .await
                    .map(Result::unwrap)
                    .is_none()
                {
                    dropped += 1;
                    tokio::task::yield_now().await;
                }
            }
            dropped
        }
    });
    let (mut state, mut dropped) = (0xfeed, 0);
    for id in 0..MESSAGES {
        let received = loop {
            match dropped_at_random(&mut state, pair.plugin.recv()).await {
                Some(received) => break received.unwrap(),
                None => dropped += 1,
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(received, message(id, (id % 5 * 10) as usize));
    }
    let sends_dropped = timeout(LONG, sending).await.unwrap().unwrap();
    assert!(
        dropped > 0 && sends_dropped > 0,
        "{dropped} receives and {sends_dropped} sends were dropped"
    );
    let slots = pair.host.hub().allocator().slot_status().total();
    assert_eq!(slots.free, slots.total);
}
