//! Which lanes are stuck, by the engine's own rules. Observations alone prove that; only the cause takes events.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use shmtrace_engine::{
    Code, Config, Engine, LaneId, Output, Request, State,
    input::{Input, Topology},
};

use crate::{
    discover::Discovery,
    observe::{Observer, mono_now},
};

/// Time for the engine to suspect a lane, on top of the grace.
const SUSPECT_WITHIN: Duration = Duration::from_millis(250);
/// As in a watch.
const TICK: Duration = Duration::from_millis(5);

/// The lanes on which an entry waits for a wakeup that was lost.
pub(super) fn stuck(
    world: &mut Discovery,
    topology: Vec<Topology>,
    grace: Duration,
) -> BTreeSet<LaneId> {
    let grace_ns = u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
    let mut engine = Engine::new(Config {
        grace: grace_ns,
        ..Config::default()
    });
    let mut observer = Observer::new();
    let mut stuck = BTreeSet::new();
    let mut samples = Vec::new();
    engine.attached(mono_now());
    for topology in topology {
        engine.handle(Input::Topology(topology));
    }
    let begun = Instant::now();
    while begun.elapsed() < grace + SUSPECT_WITHIN {
        let now = mono_now();
        world.samples(now, &mut samples);
        for sample in samples.drain(..) {
            engine.handle(Input::Sample(sample));
        }
        // There are no events, so none can be missing.
        engine.advance(now, now);
        while let Some(output) = engine.poll_output() {
            match output {
                Output::Request(Request::ObserveLane(lane) | Request::ObserveClosely(lane)) => {
                    if let Some(seen) = observer.lane(world, lane) {
                        engine.handle(Input::Lane(Box::new(seen)));
                    }
                }
                Output::Request(Request::ObserveHub(_) | Request::ObserveMemory) => {}
                Output::Finding(finding) => {
                    let Some(lane) = finding.lane.filter(|_| finding.code == Code::MissedWakeup)
                    else {
                        continue;
                    };
                    match finding.state {
                        State::Missed => drop(stuck.insert(lane)),
                        State::Recovered | State::Ended => drop(stuck.remove(&lane)),
                        State::Suspect | State::Masked | State::Inconclusive => {}
                    }
                }
            }
            let now = mono_now();
            engine.advance(now, now);
        }
        std::thread::sleep(TICK);
    }
    stuck
}
