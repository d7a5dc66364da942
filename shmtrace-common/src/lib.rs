//! Placeholder until the first real commit.
