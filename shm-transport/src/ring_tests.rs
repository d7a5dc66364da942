//! The ring, step by step. They stand apart from it, so that its file can be compiled with loom's atomics too.

use crate::ring::{Broken, Consumer, Entry, Producer, Published, Push, Ring};
use crate::sync::{AtomicU64, Ordering};

struct Memory {
    head: AtomicU64,
    tail: AtomicU64,
    slots: Vec<Entry<2>>,
}

impl Memory {
    fn new(capacity: usize) -> Self {
        Self {
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
            slots: (0..capacity).map(|_| Entry::default()).collect(),
        }
    }

    fn ring(&self) -> Ring<'_, 2> {
        Ring {
            head: &self.head,
            tail: &self.tail,
            slots: &self.slots,
        }
    }
}

#[test]
fn entries_come_out_in_order_over_many_turns() {
    let memory = Memory::new(4);
    let (mut producer, mut consumer) = (
        Producer::resume(&memory.ring()),
        Consumer::resume(&memory.ring()),
    );
    let mut expected = 0;
    for number in 0..100_u64 {
        while producer.push(&memory.ring(), &[number, !number]) == Ok(Push::Full) {
            let taken = consumer.pop(&memory.ring()).unwrap().unwrap();
            assert_eq!(taken.words, [expected, !expected]);
            expected += 1;
        }
    }
    while let Some(taken) = consumer.pop(&memory.ring()).unwrap() {
        assert_eq!(taken.words, [expected, !expected]);
        expected += 1;
    }
    assert_eq!(expected, 100);
}

#[test]
fn only_the_first_of_a_burst_needs_a_bell() {
    let memory = Memory::new(4);
    let ring = memory.ring();
    let (mut producer, mut consumer) = (Producer::resume(&ring), Consumer::resume(&ring));
    let done = |behind| Ok(Push::Done(Published { behind }));
    assert_eq!(producer.push(&ring, &[0; 2]), done(false));
    assert_eq!(producer.push(&ring, &[1; 2]), done(true));
    consumer.pop(&ring).unwrap().unwrap();
    assert_eq!(producer.push(&ring, &[2; 2]), done(true));
    while consumer.pop(&ring).unwrap().is_some() {}
    assert_eq!(consumer.may_sleep(&ring), Ok(true));
    assert_eq!(producer.push(&ring, &[3; 2]), done(false));
    assert_eq!(consumer.may_sleep(&ring), Ok(false));
}

#[test]
fn a_full_ring_is_noticed_by_both() {
    let memory = Memory::new(2);
    let ring = memory.ring();
    let (mut producer, mut consumer) = (Producer::resume(&ring), Consumer::resume(&ring));
    producer.push(&ring, &[0; 2]).unwrap();
    producer.push(&ring, &[1; 2]).unwrap();
    assert_eq!(producer.push(&ring, &[2; 2]), Ok(Push::Full));
    assert!(consumer.pop(&ring).unwrap().unwrap().was_full);
    assert_eq!(producer.has_space(&ring), Ok(true));
    assert!(!consumer.pop(&ring).unwrap().unwrap().was_full);
}

#[test]
fn impossible_indexes_are_errors() {
    let memory = Memory::new(4);
    let ring = memory.ring();
    let (mut producer, mut consumer) = (Producer::resume(&ring), Consumer::resume(&ring));
    memory.head.store(5, Ordering::Relaxed);
    assert_eq!(
        consumer.pop(&ring),
        Err(Broken::Length { head: 5, tail: 0 })
    );
    assert_eq!(
        producer.push(&ring, &[0; 2]),
        Err(Broken::Moved { ours: 0, found: 5 })
    );
    memory.head.store(0, Ordering::Relaxed);
    memory.tail.store(1, Ordering::Relaxed);
    assert_eq!(
        consumer.may_sleep(&ring),
        Err(Broken::Moved { ours: 0, found: 1 })
    );
    memory.tail.store(7, Ordering::Relaxed);
    assert!(matches!(
        producer.push(&ring, &[0; 2]),
        Err(Broken::Length { .. })
    ));
}
