//! Whether every call is accounted for, however late the reader comes.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    load::Load,
    tracer::{Calls, Tracer},
};
use crate::workspace;
use anyhow::Result;

/// Calls made in each account.
const CALLS: u64 = 10_000_000;
/// The reader is stopped this often.
const EVERY: Duration = Duration::from_millis(500);

/// One account.
pub(crate) struct Account {
    /// Processes that signal and take as fast as they can, each on a processor of its own.
    pub(crate) writers: usize,
    /// How long the reader was stopped each time.
    pub(crate) stall: Duration,
    /// Calls that the writers say they made.
    pub(crate) made: u64,
    /// Time in which they made them.
    pub(crate) time: Duration,
    /// What became of them.
    pub(crate) calls: Calls,
    /// The daemon's processor time for a million records, seconds.
    pub(crate) cpu: f64,
}

/// With one writer and a reader that stalls, and with two writers.
pub(crate) fn measure(transport: &str) -> Result<Vec<Account>> {
    eprintln!("measuring accounts");
    [(1, 0), (1, 50), (1, 300), (2, 0)]
        .into_iter()
        .map(|(writers, stall)| account(transport, writers, Duration::from_millis(stall)))
        .collect()
}

fn account(transport: &str, writers: usize, stall: Duration) -> Result<Account> {
    let programs = workspace::built("release");
    let mut loads = (0..writers)
        .map(|cpu| Load::doorbell(&programs, transport, &cpu.to_string(), 0))
        .collect::<Result<Vec<_>>>()?;
    let pids: Vec<u32> = loads.iter().flat_map(|load| load.pids.clone()).collect();
    let attached = Tracer::Shmtrace.attach(&programs, &pids)?;
    let started = Instant::now();
    let mut made = 0;
    while made < CALLS {
        made += thread::scope(|scope| {
            let running: Vec<_> = loads
                .iter_mut()
                .map(|load| scope.spawn(|| load.calls(EVERY)))
                .collect();
            if !stall.is_zero() {
                attached.stopped(|| {
                    thread::sleep(stall);
                    Ok(())
                })?;
            }
            running
                .into_iter()
                .map(|load| load.join().unwrap_or_else(|_| Ok(0)))
                .sum::<Result<u64>>()
        })?;
    }
    let time = started.elapsed();
    let cost = attached.detach()?;
    Ok(Account {
        writers,
        stall,
        made,
        time,
        calls: cost.calls,
        cpu: cost.cpu_per_million(),
    })
}
