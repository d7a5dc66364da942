//! What the machine did meanwhile: a delay means nothing without it.

use std::{fs, time::Instant};

use serde::{Deserialize, Serialize};

/// Since when, and what the processors had done by then.
pub(crate) struct Watch {
    started: Instant,
    busy: u64,
    all: u64,
    commit: String,
}

/// How busy the machine was.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) kernel: String,
    pub(crate) processors: usize,
    /// Share of processor time that was used.
    pub(crate) busy_percent: u64,
    pub(crate) seconds: u64,
    /// The commit that was measured.
    pub(crate) commit: String,
}

/// A run that figures come from.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Source {
    pub(crate) command: String,
    pub(crate) load: Load,
}

impl Watch {
    pub(crate) fn start() -> Self {
        let (busy, all) = ticks();
        Self {
            started: Instant::now(),
            busy,
            all,
            // Now: another one may be checked out before the run is over.
            commit: said("git", &["rev-parse", "--short", "HEAD"]),
        }
    }

    pub(crate) fn load(&self) -> Load {
        let (busy, all) = ticks();
        let all = all.saturating_sub(self.all).max(1);
        Load {
            kernel: said("uname", &["-r"]),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            busy_percent: busy.saturating_sub(self.busy) * 100 / all,
            seconds: self.started.elapsed().as_secs(),
            commit: self.commit.clone(),
        }
    }
}

/// What a program prints, empty if it does not run.
fn said(program: &str, args: &[&str]) -> String {
    crate::process::output(&mut crate::process::command(program, args.iter().copied()))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Ticks that the processors were busy, and all ticks.
fn ticks() -> (u64, u64) {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        // Guest time is in user time already.
        .take(8)
        .filter_map(|field| field.parse().ok())
        .collect();
    let all: u64 = fields.iter().sum();
    let idle: u64 = fields.iter().skip(3).take(2).sum();
    (all - idle, all)
}
