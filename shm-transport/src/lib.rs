//! Shared-memory hub transport (RAPAHUB 1.0).

pub mod layout;
