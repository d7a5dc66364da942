//! One lane as a state machine: producer threads, a ring, a doorbell with a bounded queue, an edge-triggered epoll, and a
//! consumer on a runtime with one or two worker threads.
//!
//! A step is what one thread does between two points at which another thread could come in between. Calls that leave a
//! record have their effect in one step and their return, which is when the probe looks at the ring, in the next.

/// Entries that are sent in all.
pub(crate) const ENTRIES: u8 = 3;
/// Entries that the ring takes.
pub(crate) const CAPACITY: u8 = 2;
/// Tokens that the doorbell's queue takes.
pub(crate) const QUEUE: u8 = 1;

/// The one rule that is broken, at most once in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Bug {
    None,
    /// The consumer takes the token and waits without looking at the ring again.
    SleepsAfterDrain,
    /// The consumer forgets the readiness that came while it was about to clear an older one.
    ClearsNews,
    /// The consumer's thread calls something else that blocks.
    Blocks,
    /// The producer does not ring.
    Silent,
    /// The producer rings, then publishes.
    Early,
    /// The ring call fails.
    Fails,
    /// The producer rings another peer's doorbell.
    Elsewhere,
    /// Another process takes a token.
    Thief,
}

/// What is explored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) producers: usize,
    pub(crate) workers: usize,
    pub(crate) bug: Bug,
}

/// Where a producer thread is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Producer {
    /// Asleep, with nothing to send.
    Idle,
    /// Wants the lock of the sending side.
    Locking,
    /// Holds it; about to publish, or waiting for space.
    Publishing { rung: bool },
    /// About to call `sendto`.
    Ringing { published: bool },
    /// `sendto` is about to return this.
    Rung { result: i8, published: bool },
}

/// Where a worker thread of the consumer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Worker {
    /// Looks for the task; parks if there is nothing to run.
    Searching,
    /// Asleep in `epoll_wait`.
    Polling,
    /// Asleep on a futex of its own.
    Parked,
    /// Runs the task: takes the next entry out of the ring.
    Dequeuing,
    /// Runs the task: calls `recvfrom`, before it waits (`first`) or after it was told that the doorbell is ready.
    Draining { first: bool, drained: bool },
    /// `recvfrom` is about to return a token.
    Drained { first: bool },
    /// Runs the task: the doorbell was empty; about to forget that it was ready.
    Clearing,
    /// Runs the task: goes on if the doorbell is ready, else waits.
    Awaiting,
    /// Asleep for ever in something else.
    Blocked,
}

/// Where the consumer's task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Task {
    Running,
    Waiting,
    Queued,
}

/// Everything at one instant.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, and a state must be small"
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct World {
    pub(crate) head: u8,
    pub(crate) tail: u8,
    pub(crate) to_send: u8,
    pub(crate) tokens: u8,
    /// epoll has news of the doorbell that nobody has collected.
    pub(crate) edge: bool,
    /// The runtime remembers that the doorbell is ready.
    pub(crate) ready: bool,
    /// News since the task last looked at `ready`: what is cleared is not what was seen.
    pub(crate) news: bool,
    pub(crate) task: Task,
    pub(crate) producers: [Producer; 2],
    pub(crate) workers: [Worker; 2],
    pub(crate) planted: bool,
}

/// What a step leaves on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Record {
    None,
    Ring { producer: usize, result: i8 },
    RingElsewhere { producer: usize },
    Take { worker: usize },
    Theft,
    Sleep { worker: usize },
    Wake { worker: usize },
}

/// A step: what left a record, the state after it, and whether it comes from outside (a thief, and new entries up to their
/// publishing) rather than from what is going on with the entries that lie in the ring.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) record: Record,
    pub(crate) after: World,
    pub(crate) outside: bool,
}

impl World {
    /// All at rest.
    pub(crate) fn start() -> Self {
        Self {
            head: 0,
            tail: 0,
            to_send: ENTRIES,
            tokens: 0,
            edge: false,
            ready: false,
            news: false,
            task: Task::Waiting,
            producers: [Producer::Idle; 2],
            workers: [Worker::Searching; 2],
            planted: false,
        }
    }

    pub(crate) fn len(&self) -> u8 {
        self.head - self.tail
    }

    /// Entries wait, and nothing that is going on with them can go on: the definition.
    pub(crate) fn is_stuck(&self, setup: Setup) -> bool {
        self.len() > 0 && self.steps(setup).iter().all(|step| step.outside)
    }

    /// Every step that could come next.
    pub(crate) fn steps(&self, setup: Setup) -> Vec<Step> {
        let mut steps = Vec::new();
        for producer in 0..setup.producers {
            self.producer_steps(setup, producer, &mut steps);
        }
        for worker in 0..setup.workers {
            self.worker_steps(setup, worker, &mut steps);
        }
        if self.may_plant(setup, Bug::Thief) && self.tokens > 0 {
            let mut after = self.plant();
            after.tokens -= 1;
            steps.push(Step {
                record: Record::Theft,
                after,
                outside: true,
            });
        }
        steps
    }

    fn may_plant(&self, setup: Setup, bug: Bug) -> bool {
        setup.bug == bug && !self.planted
    }

    fn plant(&self) -> Self {
        Self {
            planted: true,
            ..*self
        }
    }

    fn producer_at(&self, producer: usize, at: Producer) -> Self {
        let mut after = *self;
        after.producers[producer] = at;
        after
    }

    fn is_locked(&self) -> bool {
        let holds = |producer: &Producer| matches!(producer, Producer::Publishing { .. });
        self.producers.iter().any(holds)
    }

    fn producer_steps(&self, setup: Setup, producer: usize, steps: &mut Vec<Step>) {
        let mut push = |record, after, outside| {
            steps.push(Step {
                record,
                after,
                outside,
            });
        };
        match self.producers[producer] {
            Producer::Idle if self.to_send > 0 => {
                let mut after = self.producer_at(producer, Producer::Locking);
                after.to_send -= 1;
                push(Record::None, after, true);
                if self.may_plant(setup, Bug::Early) {
                    let mut after = after.plant();
                    after.producers[producer] = Producer::Ringing { published: false };
                    push(Record::None, after, true);
                }
            }
            Producer::Locking if !self.is_locked() => {
                let after = self.producer_at(producer, Producer::Publishing { rung: false });
                push(Record::None, after, true);
            }
            Producer::Publishing { rung } if self.len() < CAPACITY => {
                let next = if rung {
                    Producer::Idle
                } else {
                    Producer::Ringing { published: true }
                };
                let mut after = self.producer_at(producer, next);
                after.head += 1;
                push(Record::None, after, true);
                if self.may_plant(setup, Bug::Silent) {
                    let mut after = after.plant();
                    after.producers[producer] = Producer::Idle;
                    push(Record::None, after, true);
                }
            }
            Producer::Ringing { published } => {
                let result = i8::from(self.tokens < QUEUE);
                let mut after = self.producer_at(producer, Producer::Rung { result, published });
                if result > 0 {
                    after.tokens += 1;
                    after.edge = true;
                }
                push(Record::None, after, !published);
                if self.may_plant(setup, Bug::Fails) {
                    let failed = Producer::Rung {
                        result: -1,
                        published,
                    };
                    push(
                        Record::None,
                        self.plant().producer_at(producer, failed),
                        false,
                    );
                }
                if self.may_plant(setup, Bug::Elsewhere) {
                    let after = self.plant().producer_at(producer, Producer::Idle);
                    push(Record::RingElsewhere { producer }, after, false);
                }
            }
            Producer::Rung { result, published } => {
                let next = if published {
                    Producer::Idle
                } else {
                    Producer::Publishing { rung: true }
                };
                // Early: it takes the lock only if that is free.
                if published || !self.is_locked() {
                    let record = Record::Ring { producer, result };
                    // The signal is out already: what follows is no part of it.
                    push(record, self.producer_at(producer, next), true);
                }
            }
            _ => {}
        }
    }

    fn worker_at(&self, worker: usize, at: Worker) -> Self {
        let mut after = *self;
        after.workers[worker] = at;
        after
    }

    fn worker_steps(&self, setup: Setup, worker: usize, steps: &mut Vec<Step>) {
        let mut push = |record, after| {
            steps.push(Step {
                record,
                after,
                outside: false,
            });
        };
        match self.workers[worker] {
            Worker::Searching => {
                let (record, after) = self.search(setup, worker);
                push(record, after);
            }
            Worker::Polling if self.edge => {
                let (record, after) = self.collect(setup, worker);
                push(record, after);
            }
            Worker::Dequeuing => {
                let mut after = *self;
                if self.len() > 0 {
                    after.tail += 1;
                } else {
                    let (first, drained) = (true, false);
                    after = self.worker_at(worker, Worker::Draining { first, drained });
                }
                push(Record::None, after);
                if self.may_plant(setup, Bug::Blocks) {
                    push(
                        Record::None,
                        self.plant().worker_at(worker, Worker::Blocked),
                    );
                }
            }
            Worker::Draining { first, .. } if self.tokens > 0 => {
                let mut after = self.worker_at(worker, Worker::Drained { first });
                after.tokens -= 1;
                push(Record::None, after);
            }
            Worker::Draining { first, drained } => {
                let next = match (first, drained) {
                    (true, true) => Worker::Dequeuing,
                    (true, false) => Worker::Awaiting,
                    (false, _) => Worker::Clearing,
                };
                push(Record::None, self.worker_at(worker, next));
                if first && drained && self.may_plant(setup, Bug::SleepsAfterDrain) {
                    let after = self.plant().worker_at(worker, Worker::Awaiting);
                    push(Record::None, after);
                }
            }
            Worker::Drained { first } => {
                let drained = true;
                let after = self.worker_at(worker, Worker::Draining { first, drained });
                push(Record::Take { worker }, after);
            }
            Worker::Clearing => {
                let mut after = self.worker_at(worker, Worker::Dequeuing);
                after.ready = self.news;
                push(Record::None, after);
                if self.news && self.may_plant(setup, Bug::ClearsNews) {
                    let mut after = after.plant();
                    after.ready = false;
                    push(Record::None, after.worker_at(worker, Worker::Awaiting));
                }
            }
            Worker::Awaiting => push(Record::None, self.wait(worker)),
            Worker::Polling | Worker::Parked | Worker::Blocked => {}
        }
    }

    /// A worker without a task takes the one that is queued, or parks: at epoll if nobody is there.
    fn search(&self, setup: Setup, worker: usize) -> (Record, Self) {
        if self.task == Task::Queued {
            let mut after = self.worker_at(worker, Worker::Awaiting);
            after.task = Task::Running;
            return (Record::None, after);
        }
        let polled = self.workers[..setup.workers].contains(&Worker::Polling);
        if polled {
            (Record::None, self.worker_at(worker, Worker::Parked))
        } else {
            let after = self.worker_at(worker, Worker::Polling);
            (Record::Sleep { worker }, after)
        }
    }

    /// The worker at epoll is woken. If the token is gone already, epoll sends it back to sleep.
    fn collect(&self, setup: Setup, worker: usize) -> (Record, Self) {
        let mut after = *self;
        after.edge = false;
        if self.tokens == 0 {
            return (Record::None, after);
        }
        after.ready = true;
        after.news = true;
        after.workers[worker] = Worker::Searching;
        if after.task == Task::Waiting {
            after.task = Task::Queued;
            let parked = after.workers[..setup.workers]
                .iter()
                .position(|at| *at == Worker::Parked);
            if let Some(parked) = parked {
                after.workers[parked] = Worker::Searching;
            }
        }
        (Record::Wake { worker }, after)
    }

    /// The task goes on if the doorbell is ready, else leaves its worker.
    fn wait(&self, worker: usize) -> Self {
        if self.ready {
            let (first, drained) = (false, false);
            let mut after = self.worker_at(worker, Worker::Draining { first, drained });
            // What is ready now is what may be cleared.
            after.news = false;
            return after;
        }
        let mut after = self.worker_at(worker, Worker::Searching);
        after.task = Task::Waiting;
        after
    }
}
