//! Closer looks, as the engine asks for them: one lane with everything around it, a hub as a whole, memory limits.
//!
//! An observation is read in a fixed order, so that the engine can conclude from it: see [`lane`] and [`hub`]. Nothing is
//! concluded here, and what could not be seen is said.

mod calls;
mod hub;
mod lane;
pub(crate) mod memory;
pub(crate) mod stack;

use std::collections::BTreeMap;

use shmtrace_engine::{
    HubId, LaneId, Mono,
    input::{HubObservation, LaneObservation, MemoryObservation},
};

use crate::discover::Discovery;
use calls::CallsSeen;

/// `CLOCK_MONOTONIC` now.
pub fn mono_now() -> Mono {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Mono(now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned())
}

/// Makes observations; remembers what of each hub was reported before.
#[derive(Debug, Default)]
pub struct Observer {
    calls: BTreeMap<HubId, CallsSeen>,
    names: stack::Names,
    cgroups: memory::Cgroups,
    /// Of a hub all of whose slots are accounted for it is not looked whether everybody sleeps.
    spares_threads: bool,
}

impl Observer {
    /// Has reported nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that looks at the threads of a whole hub only where slots are in doubt, which says nothing of quiet ones: there
    /// are two files to read of every thread.
    #[must_use]
    pub fn sparing_threads(self) -> Self {
        Self {
            spares_threads: true,
            ..self
        }
    }

    /// One lane; `None` if its hub or peer is not known. Takes about 30 us per thread of the two processes.
    pub fn lane(&mut self, world: &mut Discovery, lane: LaneId) -> Option<LaneObservation> {
        lane::observe(world, lane)
    }

    /// The same, and then where the consumer's threads sleep: naming the frames of a program takes some milliseconds the
    /// first time.
    pub fn lane_closely(&mut self, world: &mut Discovery, lane: LaneId) -> Option<LaneObservation> {
        let mut seen = lane::observe(world, lane)?;
        if let Some(process) = seen.consumer.proc.and_then(|id| world.process(id)) {
            for thread in &mut seen.consumer.threads {
                thread.stack = Some(self.names.stack(process, thread));
            }
        }
        Some(seen)
    }

    /// A hub as a whole; `None` if it is not known.
    pub fn hub(&mut self, world: &mut Discovery, id: HubId) -> Option<HubObservation> {
        self.calls.retain(|hub, _| world.hub(*hub).is_some());
        let hub = world.hub(id)?;
        let calls = self.calls.entry(id).or_default();
        Some(hub::observe(world, hub, calls, self.spares_threads))
    }

    /// The memory limits that hold for these processes: one observation for each different cgroup.
    pub fn memory(&mut self, pids: &[u32]) -> Vec<MemoryObservation> {
        self.cgroups.observe(pids)
    }
}
