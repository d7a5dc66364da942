//! Being woken by the first record after a rest.

use std::io;

use aya::maps::{MapData, RingBuf};
use tokio::io::{Interest, unix::AsyncFd};

/// What the probes wake a resting reader by.
pub struct Wakeups(AsyncFd<RingBuf<MapData>>);

impl Wakeups {
    /// Within a runtime.
    pub(super) fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        // SAFETY: the ring's fd is its own, the same and open for as long as it lives.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        Ok(Self(ring?))
    }

    /// Completes when a record was written while the reader rested.
    pub async fn next(&mut self) -> io::Result<()> {
        let mut ready = self.0.readable_mut().await?;
        // What lies in it says nothing but that it is there.
        while ready.get_inner_mut().next().is_some() {}
        ready.clear_ready();
        Ok(())
    }
}
