//! Placeholder until the first real commit.
fn main() {}
