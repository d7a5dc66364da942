//! Settings and sums of the engine.

use std::collections::BTreeMap;

use crate::{Code, Mono, State};

/// Settings of an [`Engine`](crate::Engine).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// For how long a stuck state must stay unchanged before it is called missed, ns.
    pub grace: u64,
    /// Quiet for this long is a finding, ns; `None` = quiet is fine.
    pub expect_progress: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            grace: 50_000_000,
            expect_progress: None,
        }
    }
}

/// Sums over the engine's life so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// How often each class reached each state.
    pub findings: BTreeMap<(Code, State), u64>,
    /// Since when the entry that waits longest has waited; `None` if all rings are empty.
    pub oldest_waiting: Option<Mono>,
    /// Events that had to be forgotten or came too late to be sorted in.
    pub evicted: u64,
}
