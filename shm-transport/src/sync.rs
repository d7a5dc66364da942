//! The atomics of the protocol. `ring` and `stack` take theirs from here and nowhere else: `tests/loom.rs` compiles the
//! same files with loom's.

pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
