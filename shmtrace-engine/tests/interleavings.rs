//! Random interleavings of a protocol that is kept, under a daemon whose records come late, in the wrong order or not at
//! all: nothing is ever claimed. Then the same with a fault: it is found, and its cause is right or unknown.

mod world;

use proptest::prelude::*;
use shmtrace_engine::{Cause, Code, State, Tid, input::WaitsFor};
use world::*;

const SECOND: Tid = Tid(101);
const WORKER: Tid = Tid(201);

/// Where a thread that sends is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sender {
    Idle,
    Published,
}

/// Where the thread that receives is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receiver {
    Asleep,
    Draining,
    Drained,
    /// The other worker was given the rest to do.
    HandedOver,
}

/// Threads of a lane that keep the protocol, one step at a time.
struct Play {
    world: World,
    senders: [(Tid, Sender); 2],
    receiver: Receiver,
    hand_over: bool,
}

/// How the daemon sees.
#[derive(Debug, Clone)]
struct Eyes {
    late: [u64; 3],
    ahead: [u64; 3],
    watermark: u64,
    drops: u8,
}

fn eyes() -> impl Strategy<Value = Eyes> {
    let late = || prop_oneof![3 => Just(0), 1 => 0..50 * MS];
    let ahead = || prop_oneof![3 => Just(0), 1 => 0..300 * US, 1 => 0..16 * MS];
    (
        [late(), late(), late()],
        [ahead(), ahead(), ahead()],
        prop_oneof![Just(20 * MS), Just(60 * MS)],
        prop_oneof![3 => Just(0_u8), 1 => 0..64_u8],
    )
        .prop_map(|(late, ahead, watermark, drops)| Eyes {
            late,
            ahead,
            watermark,
            drops,
        })
}

/// What happens next: who goes on, and how long it takes.
type Step = (u8, u64);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let time = prop_oneof![6 => 0..50 * US, 3 => 0..2 * MS, 1 => 0..120 * MS];
    prop::collection::vec((any::<u8>(), time), 0..120)
}

impl Play {
    fn new(eyes: &Eyes, hand_over: bool) -> Self {
        let mut world = World::new(2);
        world.thread(SECOND, 100, "host", 2);
        world.thread(WORKER, 200, "plugin", 2);
        world.sleep(WORKER, WaitsFor::Futex);
        world.watermark = eyes.watermark;
        for cpu in 0..3 {
            world.sight.late.insert(cpu, eyes.late[usize::from(cpu)]);
            world.sight.ahead.insert(cpu, eyes.ahead[usize::from(cpu)]);
        }
        world.sight.drops = eyes.drops;
        Self {
            world,
            senders: [(HOST, Sender::Idle), (SECOND, Sender::Idle)],
            receiver: Receiver::Asleep,
            hand_over,
        }
    }

    fn stopped(&self, tid: Tid) -> bool {
        self.world.threads[&tid].state == 'T'
    }

    fn step(&mut self, choice: u8) {
        match choice % 16 {
            0..=4 => self.send(0),
            5..=7 => self.send(1),
            8..=14 => self.receive(),
            // A stop of either process, or its end.
            _ => {
                let pid = if choice & 16 == 0 { 100 } else { 200 };
                for thread in self.world.threads.values_mut() {
                    if thread.proc == proc_of(pid) {
                        match thread.state {
                            'T' => thread.state = 'R',
                            _ => thread.state = 'T',
                        }
                        // The wait goes on where it was, which the next step shows.
                        thread.sleeps += 1;
                    }
                }
            }
        }
    }

    fn send(&mut self, number: usize) {
        let (tid, at) = self.senders[number];
        if self.stopped(tid) {
            return;
        }
        let lane = to_peer(0);
        self.world.run(tid);
        self.senders[number].1 = match at {
            Sender::Idle if self.world.ring_of(lane).indexes.len() < u64::from(CAPACITY) => {
                self.world.publish(lane);
                Sender::Published
            }
            Sender::Idle => {
                self.world.sleep(tid, WaitsFor::HubFutex(44));
                Sender::Idle
            }
            Sender::Published => {
                self.world.ring_by(lane, tid);
                self.world.sleep(tid, WaitsFor::Futex);
                self.notice();
                Sender::Idle
            }
        };
    }

    /// A token makes the sleeping receiver runnable at once.
    fn notice(&mut self) {
        if self.receiver == Receiver::Asleep && self.world.ring_of(to_peer(0)).tokens > 0 {
            let thread = self.world.threads.get_mut(&plugin(0)).expect("receiver");
            if thread.state == 'S' {
                thread.state = 'R';
                thread.waits_for = WaitsFor::Nothing;
            }
        }
    }

    fn receive(&mut self) {
        let (lane, tid) = (to_peer(0), plugin(0));
        if self.stopped(tid) {
            return;
        }
        self.receiver = match self.receiver {
            Receiver::Asleep if self.world.ring_of(lane).tokens == 0 => {
                self.world.sleep(tid, WaitsFor::Doorbell);
                Receiver::Asleep
            }
            Receiver::Asleep => {
                self.world.threads.get_mut(&tid).expect("receiver").runs += 1;
                self.world.wake(tid, 1);
                Receiver::Draining
            }
            Receiver::Draining if self.world.take(lane, tid) => Receiver::Draining,
            Receiver::Draining if self.hand_over => {
                self.world.run(WORKER);
                self.world.idle(tid, lane);
                Receiver::HandedOver
            }
            Receiver::Draining => Receiver::Drained,
            Receiver::Drained => {
                self.world.consume(lane);
                self.world.idle(tid, lane);
                Receiver::Asleep
            }
            Receiver::HandedOver => {
                self.world.consume(lane);
                self.world.sleep(WORKER, WaitsFor::Futex);
                Receiver::Asleep
            }
        };
        self.notice();
    }

    fn play(&mut self, steps: &[Step]) {
        for (choice, time) in steps {
            self.step(*choice);
            // Whoever is runnable gets a little of the CPU now and then: starvation is another matter.
            for thread in self.world.threads.values_mut() {
                thread.cpu_ns += u64::from(thread.state == 'R');
            }
            self.world.wait(*time);
        }
    }

    /// Everybody goes on until nothing is left to do.
    fn settle(&mut self) {
        for thread in self.world.threads.values_mut() {
            if thread.state == 'T' {
                thread.state = 'R';
            }
        }
        for _ in 0..64 {
            for number in 0..2 {
                if self.senders[number].1 == Sender::Published {
                    self.send(number);
                } else {
                    self.world.sleep(self.senders[number].0, WaitsFor::Futex);
                }
            }
            self.receive();
        }
        assert_eq!(self.world.ring_of(to_peer(0)).indexes.len(), 0);
        self.world.sleep(WORKER, WaitsFor::Futex);
    }
}

fn claims(world: &World) -> Vec<(Code, Option<Cause>, State)> {
    let said = world.findings.iter();
    said.filter(|finding| finding.state != State::Suspect && finding.code != Code::Starved)
        .map(|finding| (finding.code, finding.cause, finding.state))
        .collect()
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    ConsumedThenSlept,
    RungBeforePublish,
    NeverRung,
    RingFailed,
    WrongDoorbell,
    Stolen,
    StolenUnseen,
    NotDraining,
    Blocked,
}

impl Fault {
    fn verdict(self) -> (Code, Option<Cause>) {
        let missed = |cause| (Code::MissedWakeup, Some(cause));
        match self {
            Self::ConsumedThenSlept => missed(Cause::ConsumedThenSlept),
            Self::RungBeforePublish => missed(Cause::RungBeforePublish),
            Self::NeverRung => missed(Cause::NeverRung),
            Self::RingFailed => missed(Cause::RingFailed),
            Self::WrongDoorbell => missed(Cause::WrongDoorbell),
            Self::Stolen | Self::StolenUnseen => missed(Cause::Stolen),
            Self::NotDraining => (Code::NotDraining, None),
            Self::Blocked => (Code::ConsumerBlocked, None),
        }
    }

    fn plant(self, world: &mut World, by: Tid) {
        let lane = to_peer(0);
        world.run(by);
        if matches!(self, Self::RungBeforePublish) {
            world.ring_by(lane, by);
            world.serve(lane);
            world.publish(lane);
            world.sleep(by, WaitsFor::Futex);
            return;
        }
        world.publish(lane);
        match self {
            Self::ConsumedThenSlept => {
                world.ring_by(lane, by);
                world.wake(plugin(0), 1);
                while world.take(lane, plugin(0)) {}
                world.idle(plugin(0), lane);
            }
            Self::RungBeforePublish | Self::NeverRung => {}
            Self::RingFailed => world.rang(lane, by, ECONNREFUSED),
            Self::WrongDoorbell => {
                world.ring_by(to_peer(1), by);
                world.serve(to_peer(1));
            }
            Self::Stolen => {
                world.ring_by(lane, by);
                world.run(plugin(1));
                while world.take(lane, plugin(1)) {}
                world.sleep(plugin(1), WaitsFor::Doorbell);
            }
            Self::StolenUnseen => {
                world.ring_by(lane, by);
                world.ring_of(lane).tokens = 0;
            }
            Self::NotDraining => {
                world.ring_by(lane, by);
            }
            Self::Blocked => {
                world.ring_by(lane, by);
                world.sleep(plugin(0), WaitsFor::Other);
            }
        }
        world.sleep(by, WaitsFor::Futex);
    }
}

fn fault() -> impl Strategy<Value = Fault> {
    prop::sample::select(vec![
        Fault::ConsumedThenSlept,
        Fault::RungBeforePublish,
        Fault::NeverRung,
        Fault::RingFailed,
        Fault::WrongDoorbell,
        Fault::Stolen,
        Fault::StolenUnseen,
        Fault::NotDraining,
        Fault::Blocked,
    ])
}

/// `PROPTEST_CASES` says how many.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").map_or(3000, |cases| cases.parse().expect("a number"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_protocol_that_is_kept_raises_nothing(eyes in eyes(), steps in steps(), hand_over: bool) {
        let mut play = Play::new(&eyes, hand_over);
        play.play(&steps);
        prop_assert_eq!(claims(&play.world), []);
        play.settle();
        play.world.wait(300 * MS);
        prop_assert_eq!(claims(&play.world), []);
    }

    #[test]
    fn a_fault_is_found_and_its_cause_is_never_wrong(
        eyes in eyes(), steps in steps(), hand_over: bool, fault in fault(), pause in 0..60 * MS, second: bool,
    ) {
        let mut play = Play::new(&eyes, hand_over);
        play.play(&steps);
        play.settle();
        play.world.wait(pause);
        fault.plant(&mut play.world, if second { SECOND } else { HOST });
        play.world.wait(400 * MS);
        let said = claims(&play.world);
        let (code, cause) = fault.verdict();
        let right = match said.as_slice() {
            [(said_code, said_cause, State::Missed)] => {
                *said_code == code && (*said_cause == cause || *said_cause == Some(Cause::Unknown))
            }
            _ => false,
        };
        prop_assert!(right, "{:?} is called {:?}", fault, said);
    }
}
