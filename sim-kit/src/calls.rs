//! Calls to one peer: request out, answer back, matched by id; and the gate that holds them back.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::{Notify, RwLock, oneshot};
use tokio::task::JoinHandle;

use crate::lane::{Endpoint, Message, NewPeer};
use crate::traffic::{Dice, Pacer, Sizes};

/// Totals of a host. All are mere counts: they order nothing, so every access is relaxed.
#[derive(Debug, Default)]
pub struct Totals {
    /// Answers that came and were right.
    pub round_trips: AtomicU64,
    /// Answers that differ from their request.
    pub mismatched: AtomicU64,
    /// Answers to nothing that was asked.
    pub unexpected: AtomicU64,
    /// Calls whose plugin went away before it answered.
    pub lost: AtomicU64,
    /// Sends that the transport refused for now (no free slot).
    pub refused: AtomicU64,
    /// Plugins restarted.
    pub restarts: AtomicU64,
    next_id: AtomicU64,
}

impl Totals {
    /// An id that no other message of this host has.
    pub fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Who waits for which answer; `None` once no answer can come any more.
type Answers = Mutex<Option<HashMap<u64, oneshot::Sender<Message>>>>;

/// The host's connection to one running plugin.
#[derive(Debug)]
pub struct Peer<E> {
    /// Its peer id.
    pub id: u16,
    /// Its process.
    pub pid: u32,
    /// Its process name.
    pub name: String,
    /// The number of its doorbell's end in its own process.
    pub plugin_fd: i32,
    /// The host's side.
    pub endpoint: Arc<E>,
    /// The number of the doorbell's end in our process, where the transport tells it.
    pub host_fd: Option<i32>,
    answers: Arc<Answers>,
    totals: Arc<Totals>,
    receiver: Mutex<JoinHandle<()>>,
}

impl<E: Endpoint> Peer<E> {
    /// Takes over a new peer, whose plugin runs as `pid`, and starts to receive from it.
    pub fn start(added: NewPeer<E>, pid: u32, name: String, totals: &Arc<Totals>) -> Self {
        let endpoint = Arc::new(added.endpoint);
        let answers = Arc::new(Mutex::new(Some(HashMap::new())));
        let receiver = tokio::spawn(receive(
            Arc::clone(&endpoint),
            Arc::clone(&answers),
            Arc::clone(totals),
        ));
        Self {
            id: added.id,
            pid,
            name,
            plugin_fd: added.plugin_fd,
            host_fd: added.host_fd,
            endpoint,
            answers,
            totals: Arc::clone(totals),
            receiver: Mutex::new(receiver),
        }
    }

    /// Stops receiving, between two messages: the consumer of the lane to us is then whoever asked for this.
    pub async fn pause_receiver(&self) {
        lock(&self.receiver).abort();
        while !lock(&self.receiver).is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Receives again.
    pub fn resume_receiver(&self) {
        let (endpoint, answers, totals) = (
            Arc::clone(&self.endpoint),
            Arc::clone(&self.answers),
            Arc::clone(&self.totals),
        );
        *lock(&self.receiver) = tokio::spawn(receive(endpoint, answers, totals));
    }

    /// Expects the answer to message `id`, whoever sends that and how.
    pub fn expect(&self, id: u64) -> anyhow::Result<oneshot::Receiver<Message>> {
        let (answer_to, answer) = oneshot::channel();
        match lock(&self.answers).as_mut() {
            Some(waiting) => drop(waiting.insert(id, answer_to)),
            None => bail!("plugin {} is gone", self.name),
        }
        Ok(answer)
    }

    /// Sends a message and expects nothing.
    pub async fn send(&self, message: Message) -> anyhow::Result<()> {
        self.endpoint.send(message).await
    }

    /// Sends a request and leaves it open: the answer arrives at the receiver that is returned.
    pub async fn ask(&self, request: Message) -> anyhow::Result<oneshot::Receiver<Message>> {
        let id = request.id;
        let answer = self.expect(id)?;
        if let Err(error) = self.endpoint.send(request).await {
            lock(&self.answers)
                .as_mut()
                .and_then(|waiting| waiting.remove(&id));
            return Err(error);
        }
        Ok(answer)
    }

    /// A whole round trip; fails if the answer is not the request's echo.
    pub async fn call(&self, request: Message) -> anyhow::Result<()> {
        let answer = self.ask(request.clone()).await?;
        let answer = answer
            .await
            .context("plugin went away with the call open")?;
        if answer != request {
            bail!("answer to message {} differs from the request", request.id);
        }
        Ok(())
    }

    /// Stops receiving and fails every open call: the plugin is gone.
    pub fn abandon(&self) {
        lock(&self.receiver).abort();
        lock(&self.answers).take();
    }
}

impl<E> Drop for Peer<E> {
    fn drop(&mut self) {
        lock(&self.receiver).abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing here panics while it holds the map, and a map is valid after any panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn receive<E: Endpoint>(endpoint: Arc<E>, answers: Arc<Answers>, totals: Arc<Totals>) {
    while let Ok(answer) = endpoint.recv().await {
        let asked = match lock(&answers).as_mut() {
            Some(waiting) => waiting.remove(&answer.id),
            // Given up, and this task is about to be told so.
            None => return,
        };
        match asked {
            // A caller that gave up needs no answer.
            Some(caller) => drop(caller.send(answer)),
            None => {
                totals.unexpected.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    // No more answers can come: whoever waits must learn it.
    lock(&answers).take();
}

/// One plugin's place in the tree; plugins come and go in it.
#[derive(Debug)]
pub struct Seat<E> {
    /// Position, from 0.
    pub index: usize,
    /// Held for reading by every call, for writing by whoever needs the seat to be without calls.
    pub gate: Arc<RwLock<()>>,
    /// Round trips of this seat.
    pub done: AtomicU64,
    /// Told after each round trip, so that a moment can be waited for.
    pub progress: Notify,
    peer: Mutex<Arc<Peer<E>>>,
}

impl<E: Endpoint> Seat<E> {
    /// A seat with its first plugin.
    pub fn new(index: usize, peer: Peer<E>) -> Self {
        Self {
            index,
            gate: Arc::new(RwLock::new(())),
            done: AtomicU64::new(0),
            progress: Notify::new(),
            peer: Mutex::new(Arc::new(peer)),
        }
    }

    /// The plugin that sits here now.
    pub fn peer(&self) -> Arc<Peer<E>> {
        Arc::clone(&lock(&self.peer))
    }

    /// Seats a new plugin; the old one's open calls fail.
    pub fn replace(&self, peer: Peer<E>) {
        let old = std::mem::replace(&mut *lock(&self.peer), Arc::new(peer));
        old.abandon();
    }

    /// Waits until `count` round trips were made here.
    pub async fn reached(&self, count: u64) {
        loop {
            let notified = self.progress.notified();
            if self.done.load(Ordering::Relaxed) >= count {
                return;
            }
            notified.await;
        }
    }
}

/// What all callers of a host share.
#[derive(Debug)]
pub struct Plan {
    /// Round trips still to start; `u64::MAX` for no end.
    pub budget: AtomicU64,
    /// Set when no further call shall start.
    pub stop: AtomicBool,
    /// Mean pause.
    pub gap: Duration,
    /// Payload sizes.
    pub sizes: Sizes,
    /// Seed.
    pub seed: u64,
}

impl Plan {
    /// Takes one call off the budget; false when none is left or all shall stop.
    fn take(&self) -> bool {
        if self.stop.load(Ordering::Relaxed) {
            return false;
        }
        // Relaxed: the budget is a count that nothing else depends on.
        self.budget
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| match left {
                0 => None,
                u64::MAX => Some(u64::MAX),
                left => Some(left - 1),
            })
            .is_ok()
    }
}

/// One caller: call after call on its seat until the budget is used up.
pub async fn caller<E: Endpoint>(
    seat: Arc<Seat<E>>,
    number: u32,
    plan: Arc<Plan>,
    totals: Arc<Totals>,
) {
    let mut dice = Dice::new(plan.seed, (seat.index as u64) << 32 | u64::from(number));
    let mut pacer = Pacer::new(plan.gap);
    while plan.take() {
        let size = plan.sizes.draw(&mut dice);
        let fill = dice.roll().to_le_bytes();
        let payload: Vec<u8> = fill.iter().copied().cycle().take(size).collect();
        while !round_trip(&seat, number + 1, &payload, &totals).await {
            // No room, or no plugin: either changes in a moment.
            tokio::time::sleep(Duration::from_millis(1)).await;
            if plan.stop.load(Ordering::Relaxed) {
                return;
            }
        }
        totals.round_trips.fetch_add(1, Ordering::Relaxed);
        seat.done.fetch_add(1, Ordering::Relaxed);
        seat.progress.notify_waiters();
        pacer.pause(&mut dice).await;
    }
}

/// One counted round trip; false if it must be tried again.
async fn round_trip<E: Endpoint>(
    seat: &Seat<E>,
    channel: u32,
    payload: &[u8],
    totals: &Totals,
) -> bool {
    let _pass = seat.gate.read().await;
    let peer = seat.peer();
    let request = Message {
        id: totals.next_id(),
        channel,
        method: 0,
        payload: payload.to_vec(),
    };
    let Ok(answer) = peer.ask(request.clone()).await else {
        totals.refused.fetch_add(1, Ordering::Relaxed);
        return false;
    };
    let Ok(answer) = answer.await else {
        totals.lost.fetch_add(1, Ordering::Relaxed);
        return false;
    };
    if answer != request {
        totals.mismatched.fetch_add(1, Ordering::Relaxed);
    }
    true
}
