//! Loops of system calls: what one call costs.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send};
use serde_json::{Value, json};

/// Calls between two looks at the clock.
const BATCH: u32 = 500;

/// A datagram socketpair, as doorbells are.
pub(crate) fn socketpair() -> Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
        .context("cannot make a socketpair")
}

/// `getppid()`, which nobody traces here.
pub(crate) fn getppid(millis: u64) -> Value {
    let mut calls = 0_u64;
    let start = Instant::now();
    let limit = Duration::from_millis(millis);
    while start.elapsed() < limit {
        for _ in 0..BATCH {
            std::hint::black_box(rustix::process::getppid());
        }
        calls += u64::from(BATCH);
    }
    result(calls, start.elapsed())
}

/// One byte in at one end and out at the other: two calls each time.
pub(crate) fn send_and_receive(here: impl AsFd, there: impl AsFd, millis: u64) -> Result<Value> {
    let mut calls = 0_u64;
    let mut byte = [1_u8];
    let start = Instant::now();
    let limit = Duration::from_millis(millis);
    while start.elapsed() < limit {
        for _ in 0..BATCH {
            send(&here, &byte, SendFlags::DONTWAIT).context("cannot send")?;
            recv(&there, &mut byte, RecvFlags::DONTWAIT).context("cannot receive")?;
        }
        calls += 2 * u64::from(BATCH);
    }
    Ok(result(calls, start.elapsed()))
}

fn result(calls: u64, elapsed: Duration) -> Value {
    json!({"calls": calls, "elapsed_ns": elapsed.as_nanos() as u64})
}
