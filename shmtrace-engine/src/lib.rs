//! The correlation engine of shmtrace, sans-IO.
//!
//! Events, observations and the time go in; findings and requests for a closer look come out. There is no clock, no
//! file, no process and no logging in here, so every verdict can be replayed and tested.
#![forbid(unsafe_code)]

mod calls;
mod cause;
mod condition;
mod config;
mod engine;
mod explain;
mod finding;
mod history;
mod hubs;
mod ids;
pub mod input;
mod lane;
mod pending;
mod servers;
mod starving;
mod stuck;

pub use config::{Config, Summary};
pub use engine::Engine;
pub use finding::{Cause, Code, Finding, Output, Request, State};
pub use ids::{Direction, HubId, LaneId, Mono, PeerId, ProcId, SocketInode, Tid};
