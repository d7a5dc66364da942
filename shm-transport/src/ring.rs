//! One ring: a single producer, a single consumer, and who has to wake whom.
//!
//! Everything here works on borrowed atomics, so that the same code runs on a mapped file and under loom.
//! `WORDS` is the size of an entry in 64-bit words: 8 in a hub, less in a model.
//!
//! The two questions that lose wakeups when they are answered carelessly:
//!
//! * **Does the producer have to ring?** Not if the consumer has entries left that were there before ours: it will
//!   look again before it sleeps. "Left" is judged after our own entry is visible ([`Published::behind`]).
//! * **May the consumer sleep?** Only if the ring is still empty when looked at after everything that it took is
//!   visible as taken ([`Consumer::may_sleep`]).
//!
//! Both sides write, fence, then read what the other writes; so at least one of them sees the other (Dekker), and
//! either the bell is rung or the consumer does not sleep. The same holds, with the roles exchanged, for a producer
//! that waits for space and a consumer that may wake it.

use crate::sync::{AtomicU64, Ordering, fence};

/// The words of one entry. Atomic, since a peer that breaks the rules may write them at any time.
pub(crate) type Entry<const WORDS: usize> = [AtomicU64; WORDS];

/// A ring somewhere in memory.
#[derive(Debug)]
pub(crate) struct Ring<'a, const WORDS: usize> {
    /// Entries ever published; written by the producer only.
    pub(crate) head: &'a AtomicU64,
    /// Entries ever taken; written by the consumer only.
    pub(crate) tail: &'a AtomicU64,
    /// The entries; their number is a power of two.
    pub(crate) slots: &'a [Entry<WORDS>],
}

/// Why a ring cannot be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// Somebody else moved the index that is ours alone.
    Moved { ours: u64, found: u64 },
    /// More entries than fit, or fewer than none.
    Length { head: u64, tail: u64 },
}

/// What came of publishing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    /// The consumer still has older entries to take, so it will look again before it sleeps.
    pub(crate) behind: bool,
}

/// What came of an attempt to publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Push {
    /// It is visible.
    Done(Published),
    /// No space; wait for it.
    Full,
}

/// What the consumer got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken<const WORDS: usize> {
    /// The entry.
    pub(crate) words: [u64; WORDS],
    /// Entries left.
    pub(crate) left: u64,
    /// The ring was full before this was taken: a producer may wait for space.
    pub(crate) was_full: bool,
}

impl<'a, const WORDS: usize> Ring<'a, WORDS> {
    fn capacity(&self) -> u64 {
        self.slots.len() as u64
    }

    fn slot(&self, index: u64) -> Option<&'a Entry<WORDS>> {
        // The number of slots is a power of two, so the mask keeps the index within.
        self.slots
            .get((index & self.capacity().wrapping_sub(1)) as usize)
    }

    /// Writes an entry where the next one goes, without publishing it.
    pub(crate) fn write(&self, index: u64, words: &[u64; WORDS]) {
        if let Some(slot) = self.slot(index) {
            for (into, word) in slot.iter().zip(words) {
                // Relaxed: nobody reads the slot before `head` says so; `publish` makes it visible with it.
                into.store(*word, Ordering::Relaxed);
            }
        }
    }

    /// Makes all entries before `head` visible.
    pub(crate) fn publish(&self, head: u64) {
        // Release: the entry's words cannot become visible after the head. Pairs with the Acquire load in `pop`.
        self.head.store(head, Ordering::Release);
    }
}

/// The sending end: knows its own head, believes nobody else about it.
#[derive(Debug)]
pub(crate) struct Producer {
    head: u64,
    /// The last tail seen: while it leaves space, the shared one need not be read.
    tail: u64,
}

impl Producer {
    /// Goes on where the ring stands.
    pub(crate) fn resume<const WORDS: usize>(ring: &Ring<'_, WORDS>) -> Self {
        Self {
            // Relaxed: our own index; an earlier owner of this end is gone.
            head: ring.head.load(Ordering::Relaxed),
            // Acquire: pairs with the consumer's Release in `pop`; what it took may be overwritten.
            tail: ring.tail.load(Ordering::Acquire),
        }
    }

    /// Publishes an entry, if there is space.
    pub(crate) fn push<const WORDS: usize>(
        &mut self,
        ring: &Ring<'_, WORDS>,
        words: &[u64; WORDS],
    ) -> Result<Push, Broken> {
        // Relaxed: only we may write it, so any other value proves a second producer.
        let found = ring.head.load(Ordering::Relaxed);
        if found != self.head {
            return Err(Broken::Moved {
                ours: self.head,
                found,
            });
        }
        if self.length()? >= ring.capacity() && !self.has_space(ring)? {
            return Ok(Push::Full);
        }
        ring.write(self.head, words);
        let before = self.head;
        self.head = before.wrapping_add(1);
        ring.publish(self.head);
        // SeqCst fence: our head is visible before we read the tail. Pairs with the fence in `may_sleep`: of
        // "consumer sees our entry" and "we see that it has taken all before" at least one is true.
        fence(Ordering::SeqCst);
        // Acquire: as in `resume`.
        self.tail = ring.tail.load(Ordering::Acquire);
        self.length()?;
        Ok(Push::Done(Published {
            behind: self.tail < before,
        }))
    }

    /// Looks again whether there is space. After a `false`, read before it from the futex word the value to wait on:
    /// a consumer that takes an entry after this look will see the ring full and change that word.
    pub(crate) fn has_space<const WORDS: usize>(
        &mut self,
        ring: &Ring<'_, WORDS>,
    ) -> Result<bool, Broken> {
        // SeqCst fence: what we published is visible before we read the tail. Pairs with the fence in `pop`.
        fence(Ordering::SeqCst);
        // Acquire: as in `resume`.
        self.tail = ring.tail.load(Ordering::Acquire);
        let length = self.length()?;
        if length > ring.capacity() {
            return Err(self.broken());
        }
        Ok(length < ring.capacity())
    }

    fn length(&self) -> Result<u64, Broken> {
        self.head.checked_sub(self.tail).ok_or(self.broken())
    }

    fn broken(&self) -> Broken {
        Broken::Length {
            head: self.head,
            tail: self.tail,
        }
    }
}

/// The receiving end: knows its own tail, believes nobody else about it.
#[derive(Debug)]
pub(crate) struct Consumer {
    tail: u64,
}

impl Consumer {
    /// Goes on where the ring stands.
    pub(crate) fn resume<const WORDS: usize>(ring: &Ring<'_, WORDS>) -> Self {
        Self {
            // Relaxed: our own index.
            tail: ring.tail.load(Ordering::Relaxed),
        }
    }

    /// Takes the oldest entry.
    pub(crate) fn pop<const WORDS: usize>(
        &mut self,
        ring: &Ring<'_, WORDS>,
    ) -> Result<Option<Taken<WORDS>>, Broken> {
        // Acquire: pairs with `publish`; the entries before this head are completely there.
        if self.length(ring, ring.head.load(Ordering::Acquire))? == 0 {
            return Ok(None);
        }
        let Some(slot) = ring.slot(self.tail) else {
            return Ok(None);
        };
        let mut words = [0; WORDS];
        for (word, from) in words.iter_mut().zip(slot) {
            // Relaxed: made visible by the head above.
            *word = from.load(Ordering::Relaxed);
        }
        let before = self.tail;
        self.tail = before.wrapping_add(1);
        // Release: we have read the words before the producer may overwrite them. Pairs with the producer's loads.
        ring.tail.store(self.tail, Ordering::Release);
        // SeqCst fence: the tail is visible before we read the head. Pairs with the fence in `has_space`: of
        // "producer sees the space" and "we see the ring full" at least one is true.
        fence(Ordering::SeqCst);
        // Relaxed: only the number matters here; the entries are read after the Acquire load of the next call.
        let head = ring.head.load(Ordering::Relaxed);
        Ok(Some(Taken {
            words,
            left: head.saturating_sub(self.tail),
            was_full: head.saturating_sub(before) >= ring.capacity(),
        }))
    }

    /// Whether the ring is still empty now that all we took is visible as taken. If not, `pop` again.
    pub(crate) fn may_sleep<const WORDS: usize>(
        &self,
        ring: &Ring<'_, WORDS>,
    ) -> Result<bool, Broken> {
        // SeqCst fence: our tail is visible before we read the head. Pairs with the fence in `push`.
        fence(Ordering::SeqCst);
        // Acquire: as in `pop`.
        Ok(self.length(ring, ring.head.load(Ordering::Acquire))? == 0)
    }

    fn length<const WORDS: usize>(&self, ring: &Ring<'_, WORDS>, head: u64) -> Result<u64, Broken> {
        // Relaxed: only we may write it, so any other value proves a second consumer.
        let found = ring.tail.load(Ordering::Relaxed);
        if found != self.tail {
            return Err(Broken::Moved {
                ours: self.tail,
                found,
            });
        }
        match head.checked_sub(self.tail) {
            Some(length) if length <= ring.capacity() => Ok(length),
            _ => Err(Broken::Length {
                head,
                tail: self.tail,
            }),
        }
    }
}
