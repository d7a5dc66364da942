//! Every interleaving and every allowed reordering of the protocol, by loom: the files of the crate are compiled here
//! with loom's atomics in place of the processor's. Each model has a broken variant beside it that loom must catch,
//! so that a model that looks at nothing cannot pass.

/// What the stack needs of it.
mod layout {
    pub(crate) mod class {
        pub(crate) const NO_SLOT: u32 = u32::MAX;
    }
}
#[path = "../src/ring.rs"]
mod ring;
#[path = "../src/stack.rs"]
mod stack;

/// What the files take their atomics from.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
}

use std::env;
use std::process::Command;

use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use ring::{Consumer, Entry, Producer, Push, Ring};
use stack::FreeStack;

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

/// Loom must find this failure in this model. It runs in a process of its own, since loom cannot always unwind.
fn caught(test: &str, failure: &str, model: impl Fn() + Sync + Send + 'static) {
    if env::var_os("BROKEN_MODEL").is_some() {
        loom::model(model);
        return;
    }
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("BROKEN_MODEL", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success(),
        "the broken variant was not caught"
    );
    assert!(
        said.contains(failure),
        "caught, but not for {failure:?}: {said}"
    );
}

fn bounded(preemptions: usize) -> loom::model::Builder {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder
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

#[test]
fn no_wakeup_is_lost_although_bells_are_left_out() {
    bounded(3).check(|| {
        let memory = Memory::new(4);
        let producer = {
            let memory = memory.clone();
            thread::spawn(move || produce(&memory, 3, false))
        };
        consume(&memory, 3, |consumer, ring| {
            consumer.may_sleep(ring).unwrap()
        });
        producer.join().unwrap();
    });
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
        "broken_a_bell_before_the_entry_is_published",
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
        "broken_a_bell_left_out_on_the_word_of_an_old_tail",
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
    caught("broken_an_entry_published_without_release", "torn", || {
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
    });
}

/// Space: the producer waits on the futex word, the consumer changes it and wakes who may wait.
fn space(looks_again: bool) {
    let memory = Memory::new(1);
    let producer = {
        let memory = memory.clone();
        thread::spawn(move || {
            let ring = memory.ring();
            let mut producer = Producer::resume(&ring);
            for number in 1..=2 {
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
    while taken < 2 {
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
    bounded(3).check(|| space(true));
}

#[test]
fn broken_a_producer_that_does_not_look_again() {
    let test = "broken_a_producer_that_does_not_look_again";
    caught(test, "deadlock", || space(false));
}

/// A stack of three indexes, and who holds which.
struct Slots {
    head: AtomicU64,
    links: Vec<AtomicU32>,
    held: Vec<AtomicU32>,
}

impl Slots {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            head: AtomicU64::new(0),
            links: [1, 2, u32::MAX].into_iter().map(AtomicU32::new).collect(),
            held: (0..3).map(|_| AtomicU32::new(0)).collect(),
        })
    }

    fn take(&self) -> Option<u32> {
        let stack = FreeStack {
            head: &self.head,
            next: |index| self.links.get(index as usize),
        };
        let index = stack.pop(|_| ()).unwrap()?;
        let before = self.held[index as usize].swap(1, Ordering::AcqRel);
        assert_eq!(before, 0, "slot {index} given out twice");
        Some(index)
    }

    /// Changes the head from one index to another, without a tag that would tell it from what it was before.
    fn change_untagged(&self, old: u32, new: u32) -> bool {
        self.head
            .compare_exchange(
                u64::from(old),
                u64::from(new),
                Ordering::AcqRel,
                Ordering::Relaxed,
            )
            .is_ok()
    }

    fn take_untagged(&self) -> Option<u32> {
        loop {
            let index = self.head.load(Ordering::Acquire) as u32;
            let next = self.links.get(index as usize)?.load(Ordering::Relaxed);
            if self.change_untagged(index, next) {
                let before = self.held[index as usize].swap(1, Ordering::AcqRel);
                assert_eq!(before, 0, "slot {index} given out twice");
                return Some(index);
            }
        }
    }

    fn give_untagged(&self, index: u32) {
        self.held[index as usize].store(0, Ordering::Release);
        loop {
            let next = self.head.load(Ordering::Relaxed) as u32;
            self.links[index as usize].store(next, Ordering::Relaxed);
            if self.change_untagged(next, index) {
                return;
            }
        }
    }

    fn give(&self, index: u32) {
        self.held[index as usize].store(0, Ordering::Release);
        let stack = FreeStack {
            head: &self.head,
            next: |index| self.links.get(index as usize),
        };
        stack.push(index).unwrap();
    }
}

/// One takes and keeps; the other takes two and gives the first back, so that the head is the old index again.
fn churn(slots: &Arc<Slots>, take: fn(&Slots) -> Option<u32>, give: fn(&Slots, u32)) {
    let other = {
        let slots = slots.clone();
        thread::spawn(move || {
            let (first, second) = (take(&slots), take(&slots));
            if let Some(first) = first {
                give(&slots, first);
            }
            second
        })
    };
    let ours = take(slots);
    let theirs = other.join().unwrap();
    // What nobody holds is on the stack, each once.
    let mut seen = vec![false; 3];
    for index in ours.into_iter().chain(theirs) {
        seen[index as usize] = true;
    }
    while let Some(index) = take(slots) {
        assert!(!seen[index as usize], "slot {index} held and free");
        seen[index as usize] = true;
    }
    assert_eq!(seen, [true; 3], "a slot was lost");
}

#[test]
fn no_slot_is_given_out_twice_or_lost() {
    bounded(3).check(|| churn(&Slots::new(), Slots::take, Slots::give));
}

#[test]
fn broken_a_stack_without_tags() {
    caught("broken_a_stack_without_tags", "slot", || {
        churn(&Slots::new(), Slots::take_untagged, Slots::give_untagged);
    });
}

/// What the fences are for, in four lines, with and without them: each of two writes its own and reads the other's.
fn both_blind(fenced: bool) {
    let (ours, theirs) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let other = {
        let (ours, theirs) = (ours.clone(), theirs.clone());
        thread::spawn(move || {
            theirs.store(1, Ordering::Release);
            if fenced {
                fence(Ordering::SeqCst);
            }
            ours.load(Ordering::Acquire)
        })
    };
    ours.store(1, Ordering::Release);
    if fenced {
        fence(Ordering::SeqCst);
    }
    let seen = theirs.load(Ordering::Acquire);
    assert!(seen + other.join().unwrap() > 0, "neither saw the other");
}

#[test]
fn with_fences_one_of_two_sees_the_other() {
    loom::model(|| both_blind(true));
}

#[test]
fn broken_without_fences_both_may_be_blind() {
    caught(
        "broken_without_fences_both_may_be_blind",
        "neither saw the other",
        || both_blind(false),
    );
}
