//! The daemon and command line of shmtrace.
//!
//! Loads the probes, follows a process tree, finds its hubs and doorbells, observes them, drives the correlation
//! engine and shows what it finds. See `ARCHITECTURE.md` for how the parts fit.

pub mod bounds;
pub mod canary;
pub mod cli;
pub mod commands;
pub mod discover;
pub mod exit;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod hub;
pub mod launch;
pub mod limits;
pub mod observe;
pub mod output;
pub mod probes;
pub mod process;
pub mod profile;
pub mod recording;
pub mod report;
pub mod rights;
pub mod session;
pub mod sock;
pub mod teardown;
