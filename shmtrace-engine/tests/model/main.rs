//! The protocol of one lane, explored exhaustively, with each rule kept and with each rule broken: in every state that can
//! be reached the engine's verdict is what the model itself says.

mod explore;
mod protocol;
mod watch;

use explore::Space;
use protocol::{Bug, CAPACITY, Setup, Worker, World};
use shmtrace_engine::{Cause, Code, Finding, State};
use watch::Watch;

/// The class that the model gives to a stuck state, by its own state and not by what can be seen from outside.
fn class(setup: Setup, state: &World) -> Code {
    let blocked = state.workers[..setup.workers]
        .iter()
        .all(|worker| *worker == Worker::Blocked);
    match (blocked, state.tokens) {
        (false, 0) => Code::MissedWakeup,
        _ if state.len() == CAPACITY => Code::RingFull,
        (false, _) => Code::NotDraining,
        (true, _) => Code::ConsumerBlocked,
    }
}

/// The causes that a missed wakeup may have if this rule was broken; unknown is allowed besides.
fn causes(bug: Bug) -> &'static [Cause] {
    match bug {
        Bug::None | Bug::Blocks => &[],
        Bug::SleepsAfterDrain | Bug::ClearsNews => &[Cause::ConsumedThenSlept],
        Bug::Silent => &[Cause::NeverRung],
        Bug::Early => &[Cause::RungBeforePublish],
        Bug::Fails => &[Cause::RingFailed],
        Bug::Elsewhere => &[Cause::WrongDoorbell],
        Bug::Thief => &[Cause::Stolen],
    }
}

/// What a comparison came to.
#[derive(Debug, Default)]
struct Count {
    states: usize,
    stuck: usize,
    /// Ways into stuck states after which a missed wakeup was found.
    found: usize,
    /// Those of them that name a cause.
    explained: usize,
}

/// Compares all states of a setup.
fn compare(setup: Setup) -> Count {
    let space = Space::explore(setup);
    let progress = space.may_progress();
    let mut count = Count {
        states: space.states.len(),
        ..Count::default()
    };
    let mut wrong = Vec::new();
    for (number, state) in space.states.iter().enumerate() {
        let expected = state.is_stuck(setup).then(|| class(setup, state));
        assert!(
            expected.is_none() || !progress[number],
            "the model contradicts itself: {state:?}"
        );
        count.stuck += usize::from(expected.is_some());
        // A stuck state is looked at after each way into it, for the cause depends on the way.
        let ways = if expected.is_some() {
            space.ways_to(number)
        } else {
            vec![space.way_to(number)]
        };
        for way in ways.iter().map(Some).chain([None]) {
            let said = Watch::of(setup, way.map_or(&[], Vec::as_slice), state);
            let cause = said.first().and_then(|said| said.cause);
            if way.is_some() && cause.is_some() {
                count.found += 1;
                count.explained += usize::from(cause != Some(Cause::Unknown));
            }
            if !is_right(setup, state, expected, way.is_some(), &said) {
                let verdicts: Vec<_> = said.iter().map(|said| (said.state, said.code)).collect();
                let records: Option<Vec<_>> =
                    way.map(|way| way.iter().map(|(record, _)| record).collect());
                wrong.push(format!(
                    "{expected:?} is called {verdicts:?} {cause:?}: {state:?} after {records:?}"
                ));
            }
        }
    }
    let few = &wrong[..wrong.len().min(5)];
    assert!(
        wrong.is_empty(),
        "{} disagreements in {count:?} of {setup:?}: {few:#?}",
        wrong.len()
    );
    count
}

/// Whether this may be said of a state.
fn is_right(
    setup: Setup,
    state: &World,
    expected: Option<Code>,
    known: bool,
    said: &[Finding],
) -> bool {
    match (expected, said) {
        (None, []) => true,
        // A producer's thread that runs is seen; only its own records could tell that it is not on its way to ring.
        (Some(_), []) => Watch::sees_a_producer_run(setup, state),
        (Some(code), [said]) => {
            let cause = match said.cause {
                None => code != Code::MissedWakeup,
                Some(Cause::Unknown) => true,
                Some(cause) => known && causes(setup.bug).contains(&cause),
            };
            said.state == State::Missed && said.code == code && cause
        }
        _ => false,
    }
}

/// Explores a rule, kept or broken, with one and two threads a side.
fn agree(bug: Bug, shapes: &[(usize, usize)]) {
    for &(producers, workers) in shapes {
        let setup = Setup {
            producers,
            workers,
            bug,
        };
        let count = compare(setup);
        println!(
            "{bug:?}, {producers} producing and {workers} consuming threads: {} states, {} of them stuck; {} missed wakeups, {} with a \
             cause; 0 disagreements",
            count.states, count.stuck, count.found, count.explained
        );
        assert_eq!(count.stuck > 0, bug != Bug::None, "{setup:?}: {count:?}");
    }
}

const ALL: [(usize, usize); 4] = [(1, 1), (1, 2), (2, 1), (2, 2)];

#[test]
fn a_protocol_that_is_kept_never_gets_stuck() {
    agree(Bug::None, &ALL);
}

#[test]
fn sleeping_after_the_token_was_taken() {
    agree(Bug::SleepsAfterDrain, &ALL);
}

#[test]
fn clearing_readiness_that_is_news() {
    // A runtime with one thread cannot get news while that thread does something else.
    agree(Bug::ClearsNews, &[(1, 2), (2, 2)]);
}

#[test]
fn a_call_that_blocks_the_only_thread() {
    agree(Bug::Blocks, &[(1, 1), (2, 1)]);
}

#[test]
fn a_producer_that_does_not_ring() {
    agree(Bug::Silent, &ALL);
}

#[test]
fn a_producer_that_rings_first() {
    agree(Bug::Early, &ALL);
}

#[test]
fn a_ring_that_fails() {
    agree(Bug::Fails, &ALL);
}

#[test]
fn a_ring_at_the_wrong_door() {
    agree(Bug::Elsewhere, &ALL);
}

#[test]
fn a_thief() {
    agree(Bug::Thief, &ALL);
}
