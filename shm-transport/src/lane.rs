//! One direction of one peer: the sending and the receiving half of a transport.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::sync::Mutex;

use crate::alloc::{HubAllocator, SlotRef};
use crate::desc::Descriptor;
use crate::doorbell::{Doorbell, Tokens};
use crate::error::{SlotError, TransportError};
use crate::frame::Frame;
use crate::futex;
use crate::hub::Hub;
use crate::layout::desc;
use crate::peer::PeerEntry;
use crate::ring::{Consumer, Producer, Push};
use crate::spin::Patience;
use crate::view::DescRing;

/// Longest sleep of a sender that waits for space or a slot. Every wait is woken; this is for peers that forget to
/// (rapace can, when the ring is emptied between its look and its wait).
const WAIT: Duration = Duration::from_millis(100);

/// A sender that found the consumer busy with older messages does not ring, unless its last ring is this old. A
/// signal that was lost on the way is so repeated by any later message, as it is between peers that ring always. The
/// clock that says so moves in steps of up to 10 ms, and is read for every message: it costs a tenth of an exact one.
const RING_AGAIN: Duration = Duration::from_millis(1);

/// Which way a lane goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    ToHost,
    ToPeer,
}

/// What both halves of a lane are made of.
#[derive(Debug)]
struct Lane {
    hub: Arc<Hub>,
    ring: DescRing,
    entry: PeerEntry,
    direction: Direction,
    /// Held for reading by whoever touches slots, without a wait; see `settle`.
    gate: RwLock<()>,
}

impl Lane {
    fn pass(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when all have passed that looked whether the peer lives before now.
    fn settle(&self) {
        drop(self.gate.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn word(&self) -> &AtomicU32 {
        match self.direction {
            Direction::ToHost => self.entry.send_futex(),
            Direction::ToPeer => self.entry.recv_futex(),
        }
    }
}

/// The producer's half.
#[derive(Debug)]
pub(crate) struct Sender {
    lane: Arc<Lane>,
    owner: u32,
    state: Mutex<SenderState>,
}

#[derive(Debug)]
struct SenderState {
    producer: Producer,
    /// When the bell was rung last, by the coarse clock.
    rung: Option<Duration>,
}

/// A filled slot, freed again unless its message was published.
struct Filled<'a> {
    allocator: &'a HubAllocator,
    slot: SlotRef,
}

impl Drop for Filled<'_> {
    fn drop(&mut self) {
        // Fails only if somebody reclaimed it meanwhile; then it is free.
        let _freed_by_others = self
            .allocator
            .free(self.slot)
            .or_else(|_| self.allocator.free_unsent(self.slot));
    }
}

impl Sender {
    pub(crate) fn new(
        hub: &Arc<Hub>,
        ring: DescRing,
        entry: PeerEntry,
        direction: Direction,
        owner: u32,
    ) -> Self {
        let producer = Producer::resume(&ring.ring());
        Self {
            lane: Arc::new(Lane {
                hub: Arc::clone(hub),
                ring,
                entry,
                direction,
                gate: RwLock::new(()),
            }),
            owner,
            state: Mutex::new(SenderState {
                producer,
                rung: None,
            }),
        }
    }

    /// Publishes the message and rings if need be. Until it is published nothing has happened that a drop would not
    /// undo; from then on nothing waits any more.
    pub(crate) async fn send(
        &self,
        frame: &Frame,
        bell: &Doorbell,
        alive: &(impl Fn() -> Result<(), TransportError> + Sync),
    ) -> Result<(), TransportError> {
        let mut descriptor = frame.descriptor();
        let len = frame.payload.len();
        let filled = if len <= desc::INLINE_CAPACITY {
            descriptor.payload_len = len as u32;
            descriptor.inline_payload[..len].copy_from_slice(&frame.payload);
            None
        } else {
            let filled = self.fill(&frame.payload, alive).await?;
            descriptor.payload_slot = filled.slot.encode();
            descriptor.payload_generation = filled.slot.generation;
            descriptor.payload_len = len as u32;
            Some(filled)
        };
        // One producer: senders take turns, in the order in which they came.
        let mut state = self.state.lock().await;
        loop {
            alive()?;
            match state
                .producer
                .push(&self.lane.ring.ring(), &descriptor.to_words())?
            {
                Push::Done(published) => {
                    // The receiver frees it from now on.
                    std::mem::forget(filled);
                    return state.ring(bell, published.behind);
                }
                Push::Full => self.wait_for_space(&mut state).await?,
            }
        }
    }

    /// From now on nobody fills a slot who did not see the peer's end, which must be known already.
    pub(crate) fn settle(&self) {
        self.lane.settle();
    }

    async fn fill(
        &self,
        payload: &[u8],
        alive: &(impl Fn() -> Result<(), TransportError> + Sync),
    ) -> Result<Filled<'_>, TransportError> {
        let allocator = self.lane.hub.allocator();
        loop {
            // Acquire: read before looking for a slot, so that one freed after the look changes it.
            let seen = allocator
                .slot_available(payload.len())
                .map(|word| word.load(Ordering::Acquire));
            match self.try_fill(payload, alive) {
                Ok(filled) => return Ok(filled),
                Err(TransportError::Slot(SlotError::Exhausted(len))) => {
                    let lane = Arc::clone(&self.lane);
                    blocking(move || {
                        let seen = seen.unwrap_or_default();
                        lane.hub.allocator().wait_available(len, seen, WAIT);
                    })
                    .await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// In one step: while we copy, nobody reclaims the slot, so nobody else can have it.
    fn try_fill(
        &self,
        payload: &[u8],
        alive: &impl Fn() -> Result<(), TransportError>,
    ) -> Result<Filled<'_>, TransportError> {
        let _passing = self.lane.pass();
        alive()?;
        let allocator = self.lane.hub.allocator();
        let slot = allocator.alloc(payload.len(), self.owner)?;
        let filled = Filled { allocator, slot };
        allocator.fill(slot, payload)?;
        allocator.mark_in_flight(slot)?;
        Ok(filled)
    }

    async fn wait_for_space(&self, state: &mut SenderState) -> Result<(), TransportError> {
        // Acquire: read before the second look, so that space made after the look changes it.
        let seen = self.lane.word().load(Ordering::Acquire);
        if state.producer.has_space(&self.lane.ring.ring())? {
            return Ok(());
        }
        let lane = Arc::clone(&self.lane);
        blocking(move || {
            futex::wait(lane.word(), seen, WAIT);
        })
        .await
    }
}

impl SenderState {
    fn ring(&mut self, bell: &Doorbell, behind: bool) -> Result<(), TransportError> {
        let now = coarse_clock();
        if behind
            && self
                .rung
                .is_some_and(|rung| now.saturating_sub(rung) < RING_AGAIN)
        {
            return Ok(());
        }
        self.rung = Some(now);
        bell.ring()?;
        Ok(())
    }
}

fn coarse_clock() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// Runs something that sleeps where it does not hold up the runtime.
async fn blocking(f: impl FnOnce() + Send + 'static) -> Result<(), TransportError> {
    tokio::task::spawn_blocking(f)
        .await
        .map_err(|error| TransportError::Doorbell(std::io::Error::other(error)))
}

/// The consumer's half.
#[derive(Debug)]
pub(crate) struct Receiver {
    lane: Lane,
    state: Mutex<ReceiverState>,
}

#[derive(Debug)]
pub(crate) struct ReceiverState {
    consumer: Consumer,
    tokens: Tokens,
    patience: Patience,
    /// The ring was full, and nobody was woken since.
    owes_wake: bool,
}

impl Receiver {
    pub(crate) fn new(
        hub: &Arc<Hub>,
        ring: DescRing,
        entry: PeerEntry,
        direction: Direction,
    ) -> Self {
        let consumer = Consumer::resume(&ring.ring());
        Self {
            lane: Lane {
                hub: Arc::clone(hub),
                ring,
                entry,
                direction,
                gate: RwLock::new(()),
            },
            state: Mutex::new(ReceiverState {
                consumer,
                tokens: Tokens::default(),
                patience: Patience::new(),
                owes_wake: false,
            }),
        }
    }

    /// Waits for the next message. Taking it off the ring, copying its payload and freeing its slot is one step
    /// without a wait in it, so a dropped call has lost nothing.
    pub(crate) async fn recv(
        &self,
        bell: &Doorbell,
        alive: &(impl Fn() -> Result<(), TransportError> + Sync),
    ) -> Result<Frame, TransportError> {
        let mut state = self.state.lock().await;
        loop {
            if let Some(frame) = self.take(&mut state, alive)? {
                return Ok(frame);
            }
            let ring = self.lane.ring.ring();
            if state.consumer.may_sleep(&ring)? {
                // Relaxed: only counts; the messages are read after the Acquire load of `pop`.
                let published = || ring.head.load(Ordering::Relaxed);
                let ReceiverState {
                    tokens, patience, ..
                } = &mut *state;
                // Relaxed: our own index. Any other head means a message, also one that came since the check above.
                let taken = ring.tail.load(Ordering::Relaxed);
                let look = || patience.look(|| published() != taken);
                bell.wait_counting(tokens, published, look).await?;
            }
        }
    }

    /// The next message, if there is one.
    pub(crate) async fn try_recv(
        &self,
        alive: &impl Fn() -> Result<(), TransportError>,
    ) -> Result<Option<Frame>, TransportError> {
        let mut state = self.state.lock().await;
        self.take(&mut state, alive)
    }

    /// From now on nobody reads a slot who did not see the peer's end, which must be known already. Unlike the turn
    /// of a `recv`, which one that nobody polls may hold for ever, this is held for a moment at most.
    pub(crate) fn settle(&self) {
        self.lane.settle();
    }

    fn take(
        &self,
        state: &mut ReceiverState,
        alive: &impl Fn() -> Result<(), TransportError>,
    ) -> Result<Option<Frame>, TransportError> {
        let _passing = self.lane.pass();
        alive()?;
        let Some(taken) = state.consumer.pop(&self.lane.ring.ring())? else {
            return Ok(None);
        };
        let frame = self.unpack(&Descriptor::from_words(taken.words));
        self.made_space(state, taken.was_full, taken.left);
        frame.map(Some)
    }

    fn unpack(&self, descriptor: &Descriptor) -> Result<Frame, TransportError> {
        if descriptor.payload_slot == desc::INLINE_SLOT {
            let payload = descriptor
                .inline_payload
                .get(..descriptor.payload_len as usize)
                .ok_or(TransportError::InlineLength(descriptor.payload_len))?;
            return Ok(Frame::new(descriptor, payload.to_vec()));
        }
        let slot = SlotRef::decode(descriptor.payload_slot, descriptor.payload_generation);
        let allocator = self.lane.hub.allocator();
        let payload = allocator.read(slot, descriptor.payload_offset, descriptor.payload_len);
        // A slot that is really on its way is freed even if its payload makes no sense.
        if matches!(payload, Ok(_) | Err(SlotError::Range { .. })) {
            allocator.free(slot)?;
        }
        Ok(Frame::new(descriptor, payload?))
    }

    /// Tells a producer that may wait for space: once half of a ring that was full is free, or all that was in it is
    /// taken, instead of for each message.
    fn made_space(&self, state: &mut ReceiverState, was_full: bool, left: u64) {
        let word = self.lane.word();
        // A producer between its look and its wait does not fall asleep then.
        futex::bump(word);
        state.owes_wake |= was_full;
        if state.owes_wake && left <= u64::from(self.lane.hub.ring_capacity()) / 2 {
            state.owes_wake = false;
            futex::wake_all(word);
        }
    }
}
