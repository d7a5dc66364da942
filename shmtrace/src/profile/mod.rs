//! Sampling where a tree spends its time.

mod clock;

pub use clock::can_sample;
