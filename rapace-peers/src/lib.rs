//! Hosts and plugins on the published rapace crates: real peers that nobody here wrote.
//!
//! `rapace-peer-04` speaks through `rapace-transport-shm` 0.4.0, `rapace-peer-05` through `rapace-core` 0.5.0. Each is
//! host and plugin in one program, so that either side can be set against a foreign other. A plugin answers every
//! request with the request's own payload on the request's own channel.
//!
//! The two agree on everything but slots: both write version 1.0, but 0.5 has other fields in its size class and extent
//! headers. So a host of one and a plugin of the other get along for as long as all payloads are inline (16 bytes).
//!
//! The crates themselves are used as they are. The only fault here is one that comes from outside: a token taken out of
//! a plugin's doorbell (`--steal-after`).

pub mod cli;
pub mod core05;
pub mod shm04;
mod steal;
