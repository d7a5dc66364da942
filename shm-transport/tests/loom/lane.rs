//! The ring: who has to ring, who may sleep, and who waits for space.

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use crate::ring::{Consumer, Entry, Producer, Push, Ring};
use crate::sync::{AtomicU64, WITHOUT_FENCES};
use crate::{bounded, caught};

/// A ring of entries of two words, which must never be seen half written.
struct Memory {
    head: AtomicU64,
    tail: AtomicU64,
    slots: Vec<Entry<2>>,
    word: AtomicU32,
    sleepers: (Mutex<()>, Condvar),
    bell: Bell,
}

/// The doorbell: a queue of signals that a sleeper waits for.
struct Bell {
    queued: Mutex<bool>,
    rung: Condvar,
}

impl Bell {
    fn new() -> Self {
        Self {
            queued: Mutex::new(false),
            rung: Condvar::new(),
        }
    }

    fn ring(&self) {
        *self.queued.lock().unwrap() = true;
        self.rung.notify_one();
    }

    /// Takes a signal, sleeping until there is one. Loom reports a sleep without end as a deadlock.
    fn wait(&self) {
        let mut queued = self.queued.lock().unwrap();
        while !*queued {
            queued = self.rung.wait(queued).unwrap();
        }
        *queued = false;
    }
}

impl Memory {
    fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
            slots: (0..capacity)
                .map(|_| [AtomicU64::new(0), AtomicU64::new(0)])
                .collect(),
            word: AtomicU32::new(0),
            sleepers: (Mutex::new(()), Condvar::new()),
            bell: Bell::new(),
        })
    }

    /// A `FUTEX_WAIT`: no wake comes between the comparison and the sleep.
    fn futex_wait(&self, seen: u32) {
        let queue = self.sleepers.0.lock().unwrap();
        if self.word.load(Ordering::Acquire) == seen {
            drop(self.sleepers.1.wait(queue).unwrap());
        }
    }

    fn futex_wake(&self) {
        let _queue = self.sleepers.0.lock().unwrap();
        self.sleepers.1.notify_all();
    }

    fn ring(&self) -> Ring<'_, 2> {
        Ring {
            head: &self.head,
            tail: &self.tail,
            slots: &self.slots,
        }
    }
}

/// Takes `count` entries, sleeping on the bell as the transport does.
fn consume(memory: &Memory, count: u64, may_sleep: fn(&Consumer, &Ring<'_, 2>) -> bool) {
    let ring = memory.ring();
    let mut consumer = Consumer::resume(&ring);
    let mut next = 1;
    while next <= count {
        match consumer.pop(&ring).unwrap() {
            Some(taken) => {
                assert_eq!(taken.words, [next, next], "torn, lost or out of order");
                next += 1;
            }
            None if may_sleep(&consumer, &ring) => memory.bell.wait(),
            None => {}
        }
    }
}

fn produce(memory: &Memory, count: u64, ring_always: bool) {
    let ring = memory.ring();
    let mut producer = Producer::resume(&ring);
    for number in 1..=count {
        match producer.push(&ring, &[number, number]).unwrap() {
            Push::Done(published) if ring_always || !published.behind => memory.bell.ring(),
            Push::Done(_) => {}
            Push::Full => unreachable!("the models' rings are large enough"),
        }
    }
}

fn bells_left_out() {
    let memory = Memory::new(4);
    let producer = {
        let memory = memory.clone();
        thread::spawn(move || produce(&memory, 3, false))
    };
    consume(&memory, 3, |consumer, ring| {
        consumer.may_sleep(ring).unwrap()
    });
    producer.join().unwrap();
}

#[test]
fn no_wakeup_is_lost_although_bells_are_left_out() {
    bounded(3).check(bells_left_out);
}

#[test]
fn a_peer_that_rings_always_is_served() {
    bounded(3).check(|| {
        let memory = Memory::new(4);
        let producer = {
            let memory = memory.clone();
            thread::spawn(move || produce(&memory, 2, true))
        };
        consume(&memory, 2, |consumer, ring| {
            consumer.may_sleep(ring).unwrap()
        });
        producer.join().unwrap();
    });
}

#[test]
fn broken_a_bell_before_the_entry_is_published() {
    caught(
        "lane::broken_a_bell_before_the_entry_is_published",
        "deadlock",
        || {
            let memory = Memory::new(4);
            let producer = {
                let memory = memory.clone();
                thread::spawn(move || {
                    let ring = memory.ring();
                    memory.bell.ring();
                    ring.write(0, &[1, 1]);
                    ring.publish(1);
                })
            };
            consume(&memory, 1, |consumer, ring| {
                consumer.may_sleep(ring).unwrap()
            });
            producer.join().unwrap();
        },
    );
}

#[test]
fn broken_a_bell_left_out_on_the_word_of_an_old_tail() {
    caught(
        "lane::broken_a_bell_left_out_on_the_word_of_an_old_tail",
        "deadlock",
        || {
            let memory = Memory::new(4);
            let producer = {
                let memory = memory.clone();
                thread::spawn(move || {
                    let ring = memory.ring();
                    for number in 1..=2 {
                        // Judged before the entry is visible: the consumer may fall asleep in between.
                        let behind = memory.tail.load(Ordering::Acquire) < number - 1;
                        ring.write(number - 1, &[number, number]);
                        ring.publish(number);
                        if !behind {
                            memory.bell.ring();
                        }
                    }
                })
            };
            consume(&memory, 2, |consumer, ring| {
                consumer.may_sleep(ring).unwrap()
            });
            producer.join().unwrap();
        },
    );
}

#[test]
fn broken_an_entry_published_without_release() {
    caught(
        "lane::broken_an_entry_published_without_release",
        "torn",
        || {
            let memory = Memory::new(4);
            let producer = {
                let memory = memory.clone();
                thread::spawn(move || {
                    memory.ring().write(0, &[1, 1]);
                    memory.head.store(1, Ordering::Relaxed);
                })
            };
            let ring = memory.ring();
            if let Some(taken) = Consumer::resume(&ring).pop(&ring).unwrap() {
                assert_eq!(taken.words, [1, 1], "torn");
            }
            producer.join().unwrap();
        },
    );
}

/// Space: the producer waits on the futex word, the consumer changes it and wakes who may wait. One message more than
/// fit.
fn space(capacity: usize, looks_again: bool) {
    let memory = Memory::new(capacity);
    let messages = capacity as u64 + 1;
    let producer = {
        let memory = memory.clone();
        thread::spawn(move || {
            let ring = memory.ring();
            let mut producer = Producer::resume(&ring);
            for number in 1..=messages {
                while producer.push(&ring, &[number, number]).unwrap() == Push::Full {
                    let seen = memory.word.load(Ordering::Acquire);
                    if !looks_again || !producer.has_space(&ring).unwrap() {
                        memory.futex_wait(seen);
                    }
                }
                memory.bell.ring();
            }
        })
    };
    let ring = memory.ring();
    let mut consumer = Consumer::resume(&ring);
    let mut taken = 0;
    while taken < messages {
        if let Some(entry) = consumer.pop(&ring).unwrap() {
            taken += 1;
            assert_eq!(entry.words, [taken, taken]);
            memory.word.fetch_add(1, Ordering::Release);
            if entry.was_full {
                memory.futex_wake();
            }
        } else if consumer.may_sleep(&ring).unwrap() {
            memory.bell.wait();
        }
    }
    producer.join().unwrap();
}

#[test]
fn a_producer_that_waits_for_space_is_woken() {
    for capacity in [1, 2] {
        bounded(3).check(move || space(capacity, true));
    }
}

#[test]
fn broken_a_producer_that_does_not_look_again() {
    let test = "lane::broken_a_producer_that_does_not_look_again";
    caught(test, "deadlock", || space(1, false));
}

/// The ring as it is, but its fences do nothing.
#[test]
fn broken_a_bell_left_out_without_fences() {
    let test = "lane::broken_a_bell_left_out_without_fences";
    caught(test, "deadlock", || {
        WITHOUT_FENCES.store(true, Ordering::Relaxed);
        bells_left_out();
    });
}

#[test]
fn broken_a_wait_for_space_without_fences() {
    let test = "lane::broken_a_wait_for_space_without_fences";
    caught(test, "deadlock", || {
        WITHOUT_FENCES.store(true, Ordering::Relaxed);
        space(2, true);
    });
}
