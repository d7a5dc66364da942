//! Slots that nobody has: on no free list and without an owner, because whoever moved them between the two has died.
//!
//! A process that lives may be between the same two steps, so a look alone proves nothing. The proof has four parts, in
//! this order: the list's head is read; the slot is seen off the list, ownerless, with its generation; no living process
//! has it in its hands; slot and head are unchanged. The head carries a tag that grows with each pop and push, so an
//! unchanged one means that nobody took a slot or gave one back in between, and the list that was seen is the list.
//!
//! * Whoever popped the slot before the look is either still between the steps, so it is in that process's hands, or has
//!   come to their end, so the slot has an owner or at least another generation.
//! * Whoever gives it back is either still between the steps, or has pushed it, so the head has changed.

use std::collections::HashSet;

use crate::layout::class::NO_SLOT;
use crate::moves::Words;
use crate::stack::FreeStack;
use crate::sync::{AtomicU32, Ordering};

/// The lost ones among `slots`; `None` when the list moved meanwhile, so that nothing can be said.
pub(crate) fn lost<'a, F: Fn(u32) -> Option<&'a AtomicU32>>(
    stack: &FreeStack<'a, F>,
    words: impl Fn(u32) -> Option<Words<'a>>,
    slots: impl Iterator<Item = u32>,
    in_hands: impl Fn(u32) -> bool,
) -> Option<Vec<u32>> {
    // Acquire: pairs with the exchange of each pop and push (all are read-modify-writes, so each hands on what came
    // before it): who took a slot until now has named it, and we see that or what it named later.
    let head = stack.head.load(Ordering::Acquire);
    let listed = listed(stack, head)?;
    let seen: Vec<_> = slots
        .filter(|index| !listed.contains(index))
        .filter_map(|index| Some((index, words(index)?.ownerless()?)))
        .collect();
    let lost = seen
        .into_iter()
        .filter(|(index, _)| !in_hands(*index))
        .filter(|(index, before)| {
            words(*index).and_then(|words| words.ownerless()) == Some(*before)
        })
        .map(|(index, _)| index)
        .collect();
    // Acquire: as above; the Acquire loads before keep it after them.
    (stack.head.load(Ordering::Acquire) == head).then_some(lost)
}

/// What is on the list that begins with this head. `None` when it leads nowhere or round and round.
fn listed<'a, F: Fn(u32) -> Option<&'a AtomicU32>>(
    stack: &FreeStack<'a, F>,
    head: u64,
) -> Option<HashSet<u32>> {
    let mut listed = HashSet::new();
    // The tag is the upper half.
    let mut index = head as u32;
    while index != NO_SLOT {
        let link = (stack.next)(index)?;
        if !listed.insert(index) {
            return None;
        }
        // Relaxed: the caller's Acquire load of the head covers it, as in `pop`.
        index = link.load(Ordering::Relaxed);
    }
    Some(listed)
}
