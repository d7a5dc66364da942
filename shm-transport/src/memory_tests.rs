//! The parts of a hub over plain memory, alone and between threads: what Miri can run, and what `ThreadSanitizer` shall
//! see. Payloads are copied without atomics, so that each copy is a question whether the protocol orders it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::alloc::{HubAllocator, SlotRef, host_owner};
use crate::claim::Claim;
use crate::desc::Descriptor;
use crate::error::SlotError;
use crate::hub::{Hub, HubConfig};
use crate::layout::{SlotFields, class, desc, extent, slot};
use crate::ring::{Consumer, Producer, Push};

const CONFIG: HubConfig = HubConfig {
    max_peers: 2,
    ring_capacity: 4,
};

/// Messages of each sender between threads.
const MESSAGES: u64 = if cfg!(miri) { 40 } else { 20_000 };

fn hub() -> Hub {
    Hub::in_memory(CONFIG, SlotFields::STANDARD).unwrap()
}

fn pattern(id: u64, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at as u64 ^ id) as u8).collect()
}

/// A slot with this payload, ready to be sent; `None` when all are in use.
fn filled(allocator: &HubAllocator, payload: &[u8], owner: u32) -> Option<SlotRef> {
    let slot = match allocator.alloc(payload.len(), owner) {
        Err(SlotError::Exhausted(_)) => return None,
        slot => slot.unwrap(),
    };
    allocator.fill(slot, payload).unwrap();
    allocator.mark_in_flight(slot).unwrap();
    Some(slot)
}

#[test]
fn a_slot_goes_its_way_in_both_layouts() {
    for fields in [SlotFields::STANDARD, SlotFields::RAPACE_05] {
        let hub = Hub::in_memory(CONFIG, fields).unwrap();
        let receiver = hub.again().unwrap();
        for len in [17, 1024, 1025, 20_000, 32 << 10] {
            let payload = pattern(3, len);
            let slot = filled(hub.allocator(), &payload, 0).unwrap();
            let theirs = SlotRef::decode(slot.encode(), slot.generation);
            let read = receiver.allocator().read(theirs, 0, len as u32).unwrap();
            assert_eq!(read, payload);
            receiver.allocator().free(theirs).unwrap();
            assert!(matches!(
                receiver.allocator().free(theirs),
                Err(SlotError::State { .. })
            ));
        }
        let slots = hub.allocator().slot_status().total();
        assert_eq!(slots.free, slots.total);
    }
}

#[test]
fn an_exhausted_class_is_passed_over_and_the_last_one_says_so() {
    let hub = hub();
    let allocator = hub.allocator();
    let (large, larger) = (16 << 10, 32 << 10);
    let largest = allocator.alloc(larger, 0).unwrap();
    assert_eq!(
        allocator.alloc(larger, 0),
        Err(SlotError::Exhausted(larger))
    );
    for _ in 0..2 {
        assert_eq!(allocator.alloc(large, 0).unwrap().class, 3);
    }
    assert_eq!(allocator.alloc(large, 0), Err(SlotError::Exhausted(large)));
    allocator.free_unsent(largest).unwrap();
    assert_eq!(allocator.alloc(large, 0).unwrap().class, 4);
    assert!(matches!(
        allocator.alloc(larger + 1, 0),
        Err(SlotError::TooLarge { .. })
    ));
}

#[test]
fn a_dead_owner_gives_back_its_slots_and_nobody_elses() {
    let hub = hub();
    let allocator = hub.allocator();
    filled(allocator, &pattern(0, 100), 0).unwrap();
    allocator.alloc(100, host_owner(0)).unwrap();
    let stays = filled(allocator, &pattern(1, 100), 1).unwrap();
    assert_eq!(allocator.reclaim_peer(0), 2);
    assert_eq!(allocator.read(stays, 0, 100).unwrap(), pattern(1, 100));
}

/// The sender of one lane, with slots and inline.
fn send_all(hub: &Hub, id: u16) {
    let (ring, entry) = (hub.send_ring(id).unwrap(), hub.peer(id).unwrap());
    hub.allocator().announce(entry);
    let mut producer = Producer::resume(&ring.ring());
    for msg_id in 0..MESSAGES {
        let mut message = Descriptor {
            msg_id,
            ..Descriptor::default()
        };
        if msg_id % 3 > 0 {
            let payload = pattern(msg_id, 17 + (msg_id % 90) as usize);
            let slot = loop {
                match filled(hub.allocator(), &payload, id.into()) {
                    Some(slot) => break slot,
                    None => thread::yield_now(),
                }
            };
            message.payload_slot = slot.encode();
            message.payload_generation = slot.generation;
            message.payload_len = payload.len() as u32;
        }
        while producer.push(&ring.ring(), &message.to_words()).unwrap() == Push::Full {
            thread::yield_now();
        }
    }
}

/// Its receiver: every message whole and in order.
fn receive_all(hub: &Hub, id: u16) {
    let ring = hub.send_ring(id).unwrap();
    let mut consumer = Consumer::resume(&ring.ring());
    for msg_id in 0..MESSAGES {
        let taken = loop {
            match consumer.pop(&ring.ring()).unwrap() {
                Some(taken) => break taken,
                None => thread::yield_now(),
            }
        };
        let message = Descriptor::from_words(taken.words);
        assert_eq!(message.msg_id, msg_id);
        if message.payload_slot != desc::INLINE_SLOT {
            let slot = SlotRef::decode(message.payload_slot, message.payload_generation);
            let payload = hub.allocator().read(slot, 0, message.payload_len).unwrap();
            assert_eq!(payload, pattern(msg_id, payload.len()));
            hub.allocator().free(slot).unwrap();
        }
    }
}

#[test]
fn lanes_and_a_search_for_lost_slots_do_not_disturb_each_other() {
    let host = hub();
    let plugins = [host.again().unwrap(), host.again().unwrap()];
    let entries = [host.peer(0).unwrap(), host.peer(1).unwrap()];
    for entry in &entries {
        entry.claim_nothing();
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let lanes: Vec<_> = (0_u16..)
            .zip(&plugins)
            .flat_map(|(id, plugin)| {
                let receiver = &host;
                [
                    scope.spawn(move || send_all(plugin, id)),
                    scope.spawn(move || receive_all(receiver, id)),
                ]
            })
            .collect();
        let searching = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let lost = host.allocator().recover_lost(|slot| {
                    entries
                        .iter()
                        .any(|entry| entry.claim() == Claim::Slot(slot))
                });
                assert_eq!(lost, 0, "somebody's slot was taken for lost");
                thread::yield_now();
            }
        });
        let ended: Vec<_> = lanes
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        done.store(true, Ordering::Relaxed);
        searching.join().unwrap();
        assert!(ended.iter().all(Result::is_ok), "a lane failed");
    });
    let slots = host.allocator().slot_status().total();
    assert_eq!(slots.free, slots.total);
}

/// xorshift64*: the same words in each run.
fn random(state: &mut u64, below: u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d) % below
}

/// `tests/hostile.rs` writes more, into real files; here Miri watches every access.
#[test]
fn any_words_give_values_or_errors() {
    let mut state = 0x5eed;
    for _ in 0..if cfg!(miri) { 12 } else { 300 } {
        let hub = hub();
        let end = hub.recv_ring(1).unwrap();
        let structure = 256 + 2 * 64 + 4 * (192 + 4 * 64) + class::COUNT * class::SIZE;
        let slots = structure + extent::HEADER_SIZE + 8 * slot::META_SIZE;
        for _ in 0..20 {
            let value = match random(&mut state, 3) {
                0 => u32::MAX,
                1 => random(&mut state, 64) as u32,
                _ => random(&mut state, 1 << 32) as u32,
            };
            hub.poke(random(&mut state, slots as u64 / 4) as usize * 4, value);
        }
        let _status = (end.ring_status(), end.dequeue());
        for view in [Some(hub.again()), Some(Ok(hub))]
            .into_iter()
            .flatten()
            .flatten()
        {
            use_all(&view);
        }
    }
}

fn use_all(hub: &Hub) {
    let allocator = hub.allocator();
    for id in 0..hub.max_peers() {
        let ring = hub.send_ring(id).unwrap();
        let mut consumer = Consumer::resume(&ring.ring());
        while let Ok(Some(taken)) = consumer.pop(&ring.ring()) {
            let message = Descriptor::from_words(taken.words);
            let slot = SlotRef::decode(message.payload_slot, message.payload_generation);
            let _payload = allocator.read(slot, message.payload_offset, message.payload_len);
            let _freed = allocator.free(slot);
        }
        let mut producer = Producer::resume(&ring.ring());
        let _pushed = producer.push(&ring.ring(), &Descriptor::default().to_words());
        hub.peer(id).unwrap().heartbeat();
    }
    for len in [17, 20_000] {
        if let Ok(slot) = allocator.alloc(len, 1) {
            let _filled = allocator.fill(slot, &pattern(1, len));
            let _freed = allocator.free_unsent(slot);
        }
    }
    allocator.reclaim_peer(1);
    allocator.recover_lost(|_| false);
}
