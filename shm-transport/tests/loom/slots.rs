//! The free list: no slot twice, none lost.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

use crate::stack::FreeStack;
use crate::sync::AtomicU64;
use crate::{bounded, caught};

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
    caught("slots::broken_a_stack_without_tags", "slot", || {
        churn(&Slots::new(), Slots::take_untagged, Slots::give_untagged);
    });
}
