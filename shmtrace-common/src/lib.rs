//! ABI between the probes and the daemon: records, map values, names and limits.
//!
//! `no_std`, integers and arrays only, sizes and offsets asserted at compile time. Both sides are built from one
//! tree, and the daemon still insists that the loaded object knows [`ABI_GLOBAL`], because an embedded object can be stale.
#![no_std]

mod maps;
pub mod profile;
mod record;
pub mod syscalls;

pub use maps::{
    Counter, Counters, Cursor, Doorbell, FdKey, HubMapping, KernelOffsets, KnownFd, MAX_DOORBELLS,
    MAX_HUBS_PER_PROCESS, MAX_KNOWN_FDS, MAX_PROCESSES, PID_SLOTS, PROC_PARTICIPANT, Process,
    SIDE_HOST, SIDE_IGNORED, SIDE_PLUGIN,
};
pub use record::{FLAG_PROCESS, FLAG_TO_HOST, FLAG_TO_PEER, Kind, NO_PEER, NO_SYSCALL, Record};

/// Name of the global by which probes and daemon recognise each other; its number grows with every change to the
/// records or map values.
pub const ABI_GLOBAL: &str = "ABI_6";
