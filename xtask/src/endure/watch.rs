//! A long watch of much traffic, with plugins that come and go: what does the daemon grow by?

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use super::{
    Verdict, kernel,
    scene::{Actor, Heard, count},
    table,
};

#[derive(Args)]
pub(crate) struct Watch {
    /// For how long, such as 10m or 2h
    #[arg(long = "for", default_value = "2h", value_parser = super::time)]
    time: Duration,
    /// Mean pause of each of the eight callers: it decides how many round trips a second there are
    #[arg(long, default_value = "700us")]
    gap: String,
    /// How often a plugin is killed and another put in its place
    #[arg(long, default_value = "10s")]
    restart_every: String,
}

/// How often the daemon is looked at.
const LOOKS: Duration = Duration::from_secs(10);
/// A slope that is smaller than this many times its own error is noise.
const ERRORS: f64 = 3.0;
/// And what would take this long to add a MiB is no leak either, h.
const HARMLESS: f64 = 24.0;

/// One look at the daemon.
struct Look {
    seconds: f64,
    resident_kib: u64,
    fds: usize,
}

impl Watch {
    pub(super) fn run(&self, programs: &Path) -> Result<()> {
        let args = ["--plugins", "8", "--gap", &self.gap];
        let restarts = ["--restart-every", &self.restart_every];
        let (host, _) = Actor::host(programs, &[&args[..], &restarts].concat())?;
        let mut tracer = Actor::tracer(programs, &[host.pid()], &[])?;
        tracer.wait(|line| line["type"] == "header")?;
        let looks = self.follow(&tracer)?;
        let (summary, status) = tracer.finish()?;
        let (done, _) = host.finish()?;

        table();
        let mut verdict = Verdict::default();
        let elapsed = count(&done, "elapsed_ns") as f64 / 1e9;
        Verdict::tell(
            "traffic",
            format_args!(
                "{:.0} round trips a second for {elapsed:.0} s, {} restarts of plugins",
                count(&done, "round_trips") as f64 / elapsed,
                done["restarts"]
            ),
        );
        verdict.expect(
            status.success() && count(&summary, "lost") == 0,
            "the watch",
            format_args!(
                "{status}, {} events, {} lost",
                summary["events"], summary["lost"]
            ),
        );
        verdict.expect(
            summary["findings"]
                .as_object()
                .is_some_and(serde_json::Map::is_empty),
            "findings",
            &summary["findings"],
        );
        let late = &looks[looks.len() / 2..];
        let slope = Slope::of(late);
        let resident = |look: Option<&Look>| look.map_or(0, |look| look.resident_kib);
        verdict.expect(
            slope.is_flat(),
            "resident memory of the daemon",
            format_args!(
                "{} KiB at the first look, {} at half time, {} at the end; slope of the last half {:.1} ± {:.1} KiB/h",
                resident(looks.first()),
                resident(late.first()),
                resident(looks.last()),
                slope.kib_per_hour,
                slope.error
            ),
        );
        let fds: Vec<usize> = late.iter().map(|look| look.fds).collect();
        let (least, most) = (fds.iter().min().copied(), fds.iter().max().copied());
        verdict.expect(
            // A look of the daemon may be in progress.
            most.unwrap_or(0) <= least.unwrap_or(0) + 12,
            "fds of the daemon in the last half",
            format_args!("{} to {}", least.unwrap_or(0), most.unwrap_or(0)),
        );
        verdict.end()
    }

    /// Looks at the daemon every ten seconds. Its lines are read too, so that it never waits for us.
    fn follow(&self, tracer: &Actor) -> Result<Vec<Look>> {
        let started = Instant::now();
        let mut looks = Vec::new();
        let mut next = LOOKS;
        while started.elapsed() < self.time {
            let pause = next.saturating_sub(started.elapsed());
            match tracer.next_within(pause)? {
                Heard::Line(line) => eprintln!("{:.0} s: {line}", started.elapsed().as_secs_f64()),
                Heard::Nothing => {}
                Heard::End => bail!("shmtrace ended before its time"),
            }
            if started.elapsed() < next {
                continue;
            }
            next += LOOKS;
            let look = Look {
                seconds: started.elapsed().as_secs_f64(),
                resident_kib: kernel::status_kib(tracer.pid(), "VmRSS")
                    .context("shmtrace is gone")?,
                fds: kernel::fds(tracer.pid()).len(),
            };
            eprintln!(
                "{:.0} s: {} KiB, {} fds",
                look.seconds, look.resident_kib, look.fds
            );
            looks.push(look);
        }
        anyhow::ensure!(looks.len() >= 4, "too short for a slope: at least a minute");
        Ok(looks)
    }
}

/// A line through the looks, by least squares.
struct Slope {
    kib_per_hour: f64,
    /// Standard error of it.
    error: f64,
}

impl Slope {
    fn of(looks: &[Look]) -> Self {
        let count = looks.len() as f64;
        let hours: Vec<f64> = looks.iter().map(|look| look.seconds / 3600.0).collect();
        let sizes: Vec<f64> = looks.iter().map(|look| look.resident_kib as f64).collect();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / count;
        let (hour, size) = (mean(&hours), mean(&sizes));
        let spread: f64 = hours.iter().map(|x| (x - hour).powi(2)).sum();
        let together: f64 = hours
            .iter()
            .zip(&sizes)
            .map(|(x, y)| (x - hour) * (y - size))
            .sum();
        let slope = together / spread;
        let residual: f64 = hours
            .iter()
            .zip(&sizes)
            .map(|(x, y)| (y - size - slope * (x - hour)).powi(2))
            .sum();
        Self {
            kib_per_hour: slope,
            error: (residual / (count - 2.0).max(1.0) / spread).sqrt(),
        }
    }

    fn is_flat(&self) -> bool {
        self.kib_per_hour <= (ERRORS * self.error).max(1024.0 / HARMLESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(size: impl Fn(u32) -> u64) -> Vec<Look> {
        (0..360)
            .map(|number| Look {
                seconds: f64::from(number) * 10.0,
                resident_kib: size(number),
                fds: 0,
            })
            .collect()
    }

    #[test]
    fn a_leak_is_told_from_noise() {
        let steady = Slope::of(&looks(|number| 20_000 + u64::from(number % 7) * 4));
        assert!(steady.is_flat(), "{}", steady.kib_per_hour);
        // Four KiB a minute.
        let leak = Slope::of(&looks(|number| {
            20_000 + u64::from(number % 7) * 4 + u64::from(number / 6) * 4
        }));
        assert!(!leak.is_flat(), "{}", leak.kib_per_hour);
        assert!((leak.kib_per_hour - 240.0).abs() < 10.0);
    }
}
