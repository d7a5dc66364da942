//! The search for slots that nobody has: it finds those of the dead, and never one that a living peer moves.

use std::cell::RefCell;
use std::collections::HashMap;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

use crate::claim::{self, Claim};
use crate::layout::slot;
use crate::lost::lost;
use crate::moves::Words;
use crate::stack::FreeStack;
use crate::sync::AtomicU64;
use crate::{bounded, caught};

/// The owner in all models.
const OWNER: u32 = 7;

struct Slot {
    generation: AtomicU32,
    state: AtomicU32,
    owner: AtomicU32,
    link: AtomicU32,
}

/// Two slots, both free, and what the one peer that lives says about them.
struct Class {
    head: AtomicU64,
    slots: Vec<Slot>,
    claim: AtomicU64,
}

/// How the peer names a slot before it pops it.
type Name = fn(&Class, u32);

/// Not at all.
const UNNAMED: Name = |_, _| {};

impl Class {
    fn new() -> Arc<Self> {
        let class = Self {
            head: AtomicU64::new(0),
            slots: [1, u32::MAX]
                .map(|link| Slot {
                    generation: AtomicU32::new(0),
                    state: AtomicU32::new(slot::STATE_FREE),
                    owner: AtomicU32::new(slot::OWNER_NONE),
                    link: AtomicU32::new(link),
                })
                .into(),
            claim: AtomicU64::new(0),
        };
        claim::nothing(&class.claim);
        Arc::new(class)
    }

    fn stack<'a>(
        &'a self,
        head: &'a AtomicU64,
    ) -> FreeStack<'a, impl Fn(u32) -> Option<&'a AtomicU32>> {
        FreeStack {
            head,
            next: |index| Some(&self.slots.get(index as usize)?.link),
        }
    }

    fn words(&self, index: u32) -> Option<Words<'_>> {
        let slot = self.slots.get(index as usize)?;
        Some(Words {
            generation: &slot.generation,
            state: &slot.state,
            owner: &slot.owner,
        })
    }

    fn name(&self, index: u32) {
        claim::slot(&self.claim, index);
    }

    /// As the allocator takes a slot.
    fn take(&self, name: Name) -> u32 {
        let index = self.pop(name);
        self.words(index)
            .and_then(|words| words.own(OWNER))
            .expect("nobody else has it");
        claim::nothing(&self.claim);
        index
    }

    fn pop(&self, name: Name) -> u32 {
        let index = self
            .stack(&self.head)
            .pop(|index| name(self, index))
            .expect("the list holds slots only");
        index.expect("there are enough")
    }

    /// As the allocator gives one back.
    fn give(&self, index: u32) {
        self.name(index);
        self.words(index)
            .expect("it is there")
            .let_go(slot::STATE_ALLOCATED)
            .expect("it was ours");
        self.push(index);
        claim::nothing(&self.claim);
    }

    fn push(&self, index: u32) {
        self.stack(&self.head).push(index).expect("it is there");
    }

    fn in_hands(&self, index: u32) -> bool {
        claim::read(&self.claim) == Claim::Slot(index)
    }

    /// The search as it is.
    fn search(&self) -> Option<Vec<u32>> {
        lost(
            &self.stack(&self.head),
            |index| self.words(index),
            0..2,
            |index| self.in_hands(index),
        )
    }
}

/// What a peer that lives does meanwhile.
type Busy = fn(&Class);

/// A slot that is lost although the only peer lives is a slot that would be given out twice.
fn nothing_is_lost(search: fn(&Class) -> Option<Vec<u32>>, busy: Busy) {
    let class = Class::new();
    let peer = {
        let class = class.clone();
        thread::spawn(move || busy(&class))
    };
    let found = search(&class).unwrap_or_default();
    assert!(found.is_empty(), "slots {found:?} have somebody");
    peer.join().unwrap();
}

fn takes_two(class: &Class) {
    class.take(Class::name);
    class.take(Class::name);
}

fn takes_and_gives(class: &Class) {
    let index = class.take(Class::name);
    class.give(index);
}

#[test]
fn a_slot_that_a_living_peer_takes_is_not_lost() {
    bounded(3).check(|| nothing_is_lost(Class::search, takes_two));
}

#[test]
fn a_slot_that_a_living_peer_gives_back_is_not_lost() {
    bounded(3).check(|| nothing_is_lost(Class::search, takes_and_gives));
}

/// A peer has died with slot 0 in its hands, another lives and moves slot 1: slot 0 comes back, and both are there
/// once in the end.
#[test]
fn the_slot_of_a_dead_peer_comes_back_beside_a_living_one() {
    bounded(3).check(|| {
        let class = Class::new();
        assert_eq!(class.pop(UNNAMED), 0);
        let peer = {
            let class = class.clone();
            thread::spawn(move || takes_and_gives(&class))
        };
        // While the list moves nothing can be said; when the living one is done, all can.
        let mut found = class.search();
        let late = found.is_none();
        for index in found.iter().flatten() {
            class.push(*index);
        }
        peer.join().unwrap();
        if late {
            found = class.search();
            for index in found.iter().flatten() {
                class.push(*index);
            }
        }
        assert_eq!(found, Some(vec![0]));
        let mut listed = [class.pop(UNNAMED), class.pop(UNNAMED)];
        listed.sort_unstable();
        assert_eq!(listed, [0, 1]);
    });
}

#[test]
fn broken_a_search_that_asks_nobody() {
    let test = "lost_slots::broken_a_search_that_asks_nobody";
    let search = |class: &Class| {
        lost(
            &class.stack(&class.head),
            |index| class.words(index),
            0..2,
            |_| false,
        )
    };
    caught(test, "have somebody", move || {
        nothing_is_lost(search, takes_two);
    });
}

#[test]
fn broken_a_slot_named_after_it_was_taken() {
    let test = "lost_slots::broken_a_slot_named_after_it_was_taken";
    let busy = |class: &Class| {
        let index = class.pop(UNNAMED);
        class.name(index);
    };
    caught(test, "have somebody", move || {
        nothing_is_lost(Class::search, busy);
    });
}

#[test]
fn broken_a_name_withdrawn_before_the_slot_is_owned() {
    let test = "lost_slots::broken_a_name_withdrawn_before_the_slot_is_owned";
    let busy = |class: &Class| {
        let index = class.pop(Class::name);
        claim::nothing(&class.claim);
        class.words(index).and_then(|words| words.own(OWNER));
    };
    caught(test, "have somebody", move || {
        nothing_is_lost(Class::search, busy);
    });
}

/// The next name, without Release, hides what the last one stood for.
#[test]
fn broken_a_name_that_says_nothing_of_the_one_before() {
    let test = "lost_slots::broken_a_name_that_says_nothing_of_the_one_before";
    let busy = |class: &Class| {
        let relaxed: Name = |class, index| {
            let announced = crate::layout::peer::CLAIM_ANNOUNCED | u64::from(index);
            class.claim.store(announced, Ordering::Relaxed);
        };
        class.take(relaxed);
        class.take(relaxed);
    };
    caught(test, "have somebody", move || {
        nothing_is_lost(Class::search, busy);
    });
}

/// The second look at a slot is answered with what the first one saw.
#[test]
fn broken_a_search_that_looks_once() {
    let test = "lost_slots::broken_a_search_that_looks_once";
    let search = |class: &Class| {
        let seen: RefCell<HashMap<u32, Option<[u32; 3]>>> = RefCell::default();
        let frozen = class
            .slots
            .iter()
            .map(|_| Slot {
                generation: AtomicU32::new(0),
                state: AtomicU32::new(0),
                owner: AtomicU32::new(0),
                link: AtomicU32::new(0),
            })
            .collect::<Vec<_>>();
        lost(
            &class.stack(&class.head),
            |index| {
                let slot = &frozen[index as usize];
                let words = Words {
                    generation: &slot.generation,
                    state: &slot.state,
                    owner: &slot.owner,
                };
                let first = *seen.borrow_mut().entry(index).or_insert_with(|| {
                    let words = class.words(index)?;
                    let (generation, state) = words.ownerless()?;
                    Some([generation, state, slot::OWNER_NONE])
                });
                let [generation, state, owner] = first.unwrap_or([0, 0, OWNER]);
                words.generation.store(generation, Ordering::Relaxed);
                words.state.store(state, Ordering::Relaxed);
                words.owner.store(owner, Ordering::Relaxed);
                Some(words)
            },
            0..2,
            |index| class.in_hands(index),
        )
    };
    caught(test, "have somebody", move || {
        nothing_is_lost(search, takes_two);
    });
}

/// The list's head is compared with itself.
#[test]
fn broken_a_search_that_does_not_see_the_list_move() {
    let test = "lost_slots::broken_a_search_that_does_not_see_the_list_move";
    let search = |class: &Class| {
        let frozen = AtomicU64::new(class.head.load(Ordering::Acquire));
        lost(
            &class.stack(&frozen),
            |index| class.words(index),
            0..2,
            |index| class.in_hands(index),
        )
    };
    caught(test, "have somebody", move || {
        nothing_is_lost(search, takes_and_gives);
    });
}
