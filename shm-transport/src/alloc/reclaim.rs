//! Slots of processes that have ended.

use std::sync::atomic::Ordering;

use super::{HubAllocator, SlotRef, host_owner, slot};
use crate::lost::lost;

/// Looks at one class until it holds still; under constant traffic the next occasion has to do.
const ATTEMPTS: usize = 64;

impl HubAllocator {
    /// Frees all slots of a dead peer: those that it filled, and those that the host filled for it. Returns how many.
    ///
    /// Only for a host, and only once the peer's process is gone and nothing of its rings will be read any more.
    pub fn reclaim_peer(&self, id: u16) -> usize {
        self.reclaim_owner(u32::from(id)) + self.reclaim_owner(host_owner(id))
    }

    /// Frees all slots of one owner. Returns how many.
    pub fn reclaim_owner(&self, owner: u32) -> usize {
        let mut freed = 0;
        for (class, index) in self.all_slots() {
            let Ok(meta) = self.meta(class, index) else {
                continue;
            };
            if !meta.words.is_of(owner) {
                continue;
            }
            let window = self.window();
            window.names(class, index);
            if !meta.words.take_from(owner) {
                continue;
            }
            if let Ok(was_empty) = self.push(class, index) {
                drop(window);
                self.tell(class, was_empty);
                freed += 1;
            }
        }
        freed
    }

    /// Gives back the slots that are on no list and have no owner, because whoever moved them between the two has
    /// died. Returns how many.
    ///
    /// `in_hands` says of a slot, as a descriptor names it, whether a process that lives may be in the midst of
    /// moving it. It must look at all of them, each time anew, and only the process itself is left out: its other
    /// threads wait while this looks.
    pub(crate) fn recover_lost(&self, in_hands: impl Fn(u32) -> bool) -> usize {
        let mut recovered = 0;
        for (number, class) in (0_u32..).zip(&self.classes) {
            let Ok(stack) = self.stack(number, class) else {
                continue;
            };
            for _ in 0..ATTEMPTS {
                let window = self.window();
                let indexes = class.indexes();
                let slot = |index| SlotRef {
                    class: number,
                    index,
                    generation: 0,
                };
                let found = lost(
                    &stack,
                    |index| self.words(number, index),
                    indexes,
                    |index| in_hands(slot(index).encode()),
                );
                let Some(found) = found else {
                    drop(window);
                    std::thread::yield_now();
                    continue;
                };
                let mut was_empty = false;
                for index in &found {
                    let Ok(meta) = self.meta(number, *index) else {
                        continue;
                    };
                    // Release: as in `let_go`; nobody else can reach the slot until it is on the list.
                    meta.words.state.store(slot::STATE_FREE, Ordering::Release);
                    was_empty |= self.push(number, *index).unwrap_or(false);
                }
                drop(window);
                if !found.is_empty() {
                    self.tell(number, was_empty);
                }
                recovered += found.len();
                break;
            }
        }
        recovered
    }
}
