//! ABI between the probes and the daemon: records, map values, names and limits.
//!
//! `no_std`, integers and arrays only, sizes and offsets asserted at compile time. Both sides are built from one
//! tree, and the daemon still compares [`ABI_VERSION`] with the loaded object, because an embedded object can be stale.
#![no_std]

mod maps;
mod record;
pub mod syscalls;

pub use maps::{
    Counter, Counters, Doorbell, HubMapping, KernelOffsets, MAX_DOORBELLS, MAX_HUBS_PER_PROCESS,
    MAX_PROCESSES, MAX_RINGS, PROC_PARTICIPANT, Process, SIDE_HOST, SIDE_IGNORED, SIDE_PLUGIN,
};
pub use record::{FLAG_PROCESS, FLAG_RINGS, Kind, NO_PEER, Record};

/// Version of everything in this crate; the probes export it as the global `ABI`.
pub const ABI_VERSION: u32 = 1;
