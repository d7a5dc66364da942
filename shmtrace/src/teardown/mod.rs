//! Ending a process tree, and removing the hub files that it leaves behind.
//!
//! Processes are held by pidfds from the moment they are seen, so a pid that is given out again is never signalled. A
//! process belongs to the tree if its parent does; see [`Tree`] for what that means while the tree is changing.

mod hubs;
mod seize;
mod tree;

pub use hubs::{HubFile, Users, hubs_of, stale_hubs};
pub use tree::{Ended, Ending, Member, TeardownError, Tree};
