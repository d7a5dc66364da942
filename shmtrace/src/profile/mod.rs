//! Sampling where a tree spends its time: on the CPU by each CPU's clock, off it by the scheduler's switches.
//!
//! The programs take stacks by frame pointers, in the kernel, and sum up; this side follows the tree's memory mappings
//! while it runs, and names the frames afterwards. Nothing stops the sampled processes.

mod frames;
pub(crate) mod modules;
mod programs;

pub(crate) use frames::escaped;
pub use frames::{Folded, Namer};
pub use modules::Modules;
pub use programs::{Kind, Losses, Programs};
