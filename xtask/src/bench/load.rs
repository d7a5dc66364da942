//! The loads: processes of `bench-load` that measure when they are told to.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::process::{self, Guard};

/// Where a pair runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// Host and plugin on one processor: the most calls a second, the worst case.
    Same,
    /// Each on its own, beside a spinner that keeps it from halting: what a busy machine looks like.
    Spin,
}

/// A load that runs, and what it takes orders through.
pub(crate) struct Load {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// The processes that a tracer is to watch.
    pub(crate) pids: Vec<u32>,
    _spinners: Vec<Guard>,
}

impl Load {
    /// A host and a plugin that call each other.
    pub(crate) fn pair(programs: &Path, transport: &str, placement: Placement) -> Result<Self> {
        let plugin_cpu = if placement == Placement::Same {
            "0"
        } else {
            "1"
        };
        let spinners = match placement {
            Placement::Same => Vec::new(),
            Placement::Spin => vec![spinner("0")?, spinner("1")?],
        };
        let args = [
            "pair",
            "--transport",
            transport,
            "--cpu",
            "0",
            "--plugin-cpu",
            plugin_cpu,
        ];
        Self::start(programs, &args, spinners)?.with_plugin()
    }

    /// A host with a doorbell on a processor, a plugin that never looks at it, and more of these beside it.
    pub(crate) fn doorbell(
        programs: &Path,
        transport: &str,
        cpu: &str,
        more: usize,
    ) -> Result<Self> {
        let args = [
            "pair",
            "--transport",
            transport,
            "--cpu",
            cpu,
            "--plugin-cpu",
            cpu,
            "--idle",
            "--more-plugins",
            &more.to_string(),
        ];
        Self::start(programs, &args, Vec::new())?.with_plugin()
    }

    /// A process that has nothing to do with any of this.
    pub(crate) fn alone(programs: &Path) -> Result<Self> {
        Self::start(programs, &["alone", "--cpu", "0"], Vec::new())
    }

    fn start(programs: &Path, args: &[&str], spinners: Vec<Guard>) -> Result<Self> {
        let mut command = Command::new(programs.join("bench-load"));
        command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start bench-load")?;
        let orders = Some(child.stdin.take().context("bench-load has no stdin")?);
        let answers = BufReader::new(child.stdout.take().context("bench-load has no stdout")?);
        let pids = vec![child.id()];
        Ok(Self {
            child,
            orders,
            answers,
            pids,
            _spinners: spinners,
        })
    }

    fn with_plugin(mut self) -> Result<Self> {
        let said = self.answer()?;
        let plugins = said["plugins"].as_array().into_iter().flatten();
        let plugins = plugins.filter_map(|pid| u32::try_from(pid.as_u64()?).ok());
        self.pids.extend(plugins);
        if self.pids.len() < 2 {
            bail!("bench-load names no plugin: {said}");
        }
        Ok(self)
    }

    /// Has it measure.
    pub(crate) fn measure(&mut self, order: &str) -> Result<Value> {
        let orders = self.orders.as_mut().context("bench-load ended")?;
        writeln!(orders, "{order}")
            .with_context(|| format!("bench-load does not take `{order}`"))?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self
            .answers
            .read_line(&mut line)
            .context("cannot read from bench-load")?
            == 0
        {
            bail!("bench-load ended");
        }
        serde_json::from_str(&line).with_context(|| format!("bench-load said {line:?}"))
    }

    /// Round trips a second for a time.
    pub(crate) fn trips_a_second(&mut self, time: Duration) -> Result<f64> {
        let (trips, took) = self.trips(time)?;
        Ok(trips / took.as_secs_f64())
    }

    /// Round trips, and what they took.
    pub(crate) fn trips(&mut self, time: Duration) -> Result<(f64, Duration)> {
        let result = self.measure(&format!("trips {} 0", time.as_millis()))?;
        let nanos = number(&result, "elapsed_ns")?;
        Ok((
            number(&result, "round_trips")?,
            Duration::from_nanos(nanos as u64),
        ))
    }

    /// Median and 99th percentile of a round trip, in microseconds, with a pause of 200 us after each.
    pub(crate) fn paced(&mut self, time: Duration) -> Result<[f64; 2]> {
        let result = self.measure(&format!("trips {} 200000", time.as_millis()))?;
        Ok([
            number(&result, "p50_ns")? / 1e3,
            number(&result, "p99_ns")? / 1e3,
        ])
    }

    /// Signals and takings on the doorbell for a time; how many calls these were.
    pub(crate) fn calls(&mut self, time: Duration) -> Result<u64> {
        let result = self.measure(&format!("micro {}", time.as_millis()))?;
        result["calls"]
            .as_u64()
            .with_context(|| format!("bench-load did not tell `calls`: {result}"))
    }

    /// Nanoseconds that one call takes.
    pub(crate) fn per_call(&mut self, what: &str, time: Duration) -> Result<f64> {
        let result = self.measure(&format!("{what} {}", time.as_millis()))?;
        Ok(number(&result, "elapsed_ns")? / number(&result, "calls")?)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Without orders it ends by itself, with its plugins and its hub.
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}

fn number(result: &Value, field: &str) -> Result<f64> {
    result[field]
        .as_f64()
        .with_context(|| format!("bench-load did not tell `{field}`: {result}"))
}

/// Runs whenever its processor has nothing else to do.
fn spinner(cpu: &str) -> Result<Guard> {
    let mut command = process::command(
        "chrt",
        [
            "--idle",
            "0",
            "taskset",
            "--cpu-list",
            cpu,
            "sh",
            "-c",
            "while :; do :; done",
        ],
    );
    Ok(Guard(
        command
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start a spinner with chrt and taskset")?,
    ))
}
