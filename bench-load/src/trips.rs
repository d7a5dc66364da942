//! Round trips: as many as fit into a time, and how long each took.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sim_kit::lane::{Endpoint, Message};

/// Room for this many latencies; further trips are counted only.
const KEPT: usize = 4_000_000;

/// One call open at a time, a pause after each.
pub(crate) struct Trips {
    next_id: u64,
    latencies: Vec<u32>,
}

impl Trips {
    pub(crate) fn new() -> Self {
        Self {
            next_id: 1,
            latencies: Vec::with_capacity(KEPT),
        }
    }

    /// Makes round trips for a time.
    pub(crate) async fn run<E: Endpoint>(
        &mut self,
        endpoint: &E,
        size: usize,
        time: Duration,
        gap: Duration,
    ) -> Result<Value> {
        self.latencies.clear();
        let payload = vec![7_u8; size];
        let mut trips = 0_u64;
        let start = Instant::now();
        loop {
            let begin = Instant::now();
            if begin.duration_since(start) >= time {
                break;
            }
            self.next_id += 1;
            let message = Message {
                id: self.next_id,
                channel: 1,
                method: 0,
                payload: payload.clone(),
            };
            endpoint.send(message).await?;
            let answer = endpoint.recv().await?;
            ensure!(
                answer.id == self.next_id,
                "answer {} to request {}",
                answer.id,
                self.next_id
            );
            if self.latencies.len() < KEPT {
                self.latencies
                    .push(u32::try_from(begin.elapsed().as_nanos()).unwrap_or(u32::MAX));
            }
            trips += 1;
            if !gap.is_zero() {
                // The runtime's timer counts in milliseconds, and nobody else needs this thread.
                std::thread::sleep(gap);
            }
        }
        let elapsed = start.elapsed();
        self.latencies.sort_unstable();
        Ok(json!({
            "round_trips": trips,
            "elapsed_ns": elapsed.as_nanos() as u64,
            "p50_ns": self.quantile(50),
            "p99_ns": self.quantile(99),
        }))
    }

    fn quantile(&self, percent: usize) -> u32 {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies
            .get(last * percent / 100)
            .copied()
            .unwrap_or_default()
    }
}
