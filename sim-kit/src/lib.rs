//! What the stand-ins for `ddc` share, whichever transport they speak.
//!
//! A stand-in is a host process that creates a hub, starts plugin processes the way `ddc` does, and makes calls:
//! a request on one lane, the answer on the other. This crate has the parts of it that do not depend on the transport:
//!
//! * [`lane`]: what a transport must offer to be driven;
//! * [`host`], [`run`]: the host's hub and plugins, and a run of it from the first call to an orderly end;
//! * [`plugin`]: the other side;
//! * [`calls`]: the callers, the gates that hold them back while a fault is planted, and the counters;
//! * [`child`]: starting a plugin, and ending it for certain;
//! * [`look`]: what `/proc` says about a process, to plant a fault only in the state that it needs;
//! * [`thief`], [`theft`]: taking a doorbell's token from outside, and a missed wakeup made of it;
//! * [`report`]: the JSON lines on stdout;
//! * [`traffic`]: seeded sizes and pauses;
//! * [`stage`]: a stand-in as a test sees it, from outside;
//! * [`cli`]: the options that all stand-ins have.

pub mod calls;
pub mod child;
pub mod cli;
pub mod host;
pub mod lane;
pub mod look;
pub mod plugin;
pub mod report;
pub mod run;
pub mod stage;
pub mod theft;
pub mod thief;
pub mod traffic;
