//! `cargo xtask bench`: what tracing costs, side by side in one run.
//!
//! Each figure is measured on processes that keep running while a tracer comes and goes: without, with, without, with. So
//! both halves of a pair see the same machine, and what the machine does to all of them drops out of the ratio.

mod accounting;
mod figures;
mod load;
mod report;
mod tracer;

use std::{fs, path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::{process, setup, test, workspace};
use figures::Samples;
use load::{Load, Placement};
use report::{Idle, Report, Row};
use tracer::{Cost, Tracer};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// What tracing costs, beside other tracers
    Tracing,
    /// shm-transport beside the published rapace 0.4; its report is docs/transport-bench.md
    Transport,
}

#[derive(Args)]
pub(crate) struct Bench {
    #[arg(value_enum, default_value_t = Subject::Tracing)]
    subject: Subject,
    /// Pairs of measurements, without and with the tracer
    #[arg(long, default_value_t = 7)]
    pairs: u32,
    /// Length of each measurement, in milliseconds
    #[arg(long, default_value_t = 1000)]
    millis: u64,
    /// shmtrace alone, without the tracers that it is compared with
    #[arg(long)]
    alone: bool,
    /// The transport of the traced pair
    #[arg(long, default_value = "rapace")]
    transport: String,
    /// Where the report goes
    #[arg(long, default_value = "docs/benchmarks.md")]
    output: PathBuf,
}

impl Bench {
    pub(crate) fn run(&self) -> Result<()> {
        match self.subject {
            Subject::Tracing => self.tracing(),
            Subject::Transport => transport(),
        }
    }

    fn tracing(&self) -> Result<()> {
        setup::run()?;
        if !test::is_root() {
            bail!(
                "tracing other processes takes root: `sudo -E env PATH=\"$PATH\" cargo xtask bench`"
            );
        }
        let tracers: &[Tracer] = if self.alone {
            &tracer::ALL[..1]
        } else {
            &tracer::ALL
        };
        workspace::build_release(&["shmtrace", "bench-load", "rapace-peers"])?;

        let mut report = Report::default();
        for &tracer in tracers {
            match tracer.install() {
                Ok(()) => report.rows.push(self.compare(tracer)?),
                Err(error) => report.absent.push(format!("{}: {error:#}", tracer.name())),
            }
        }
        report.bystanders = self.bystanders()?;
        report.idle = self.idle()?;
        report.accounts = accounting::measure(&self.transport)?;
        let text = report.text(self);
        println!("\n{text}");
        let output = workspace::root().join(&self.output);
        if let Some(folder) = output.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        fs::write(&output, text).with_context(|| format!("cannot write {}", output.display()))
    }

    /// All that is measured of one tracer.
    fn compare(&self, tracer: Tracer) -> Result<Row> {
        eprintln!("measuring {}", tracer.name());
        let mut row = Row::new(tracer.name());
        let mut pair = self.pair(Placement::Same)?;
        row.same = self.ratio(tracer, &mut pair, &mut row.costs, &mut row.same_untraced)?;
        drop(pair);
        let mut pair = self.pair(Placement::Spin)?;
        row.spin = self.ratio(tracer, &mut pair, &mut row.costs, &mut row.spin_untraced)?;
        self.in_turn(tracer, &mut pair, |pair, traced| {
            let (p50, p99) = pair.paced(self.time())?;
            let side = if traced {
                &mut row.paced
            } else {
                &mut row.paced_untraced
            };
            side.0.push(p50);
            side.1.push(p99);
            Ok(())
        })?;
        drop(pair);

        let mut doorbell = Load::doorbell(&workspace::built("release"), &self.transport, "0")?;
        let mut untraced = 0.0;
        self.in_turn(tracer, &mut doorbell, |doorbell, traced| {
            let nanos = doorbell.per_call("micro", self.time())?;
            if traced {
                row.micro.push(nanos - untraced);
            } else {
                row.micro_untraced.push(nanos);
                untraced = nanos;
            }
            Ok(())
        })?;
        Ok(row)
    }

    /// Traced round trips a second as a share of untraced ones.
    fn ratio(
        &self,
        tracer: Tracer,
        pair: &mut Load,
        costs: &mut Vec<Cost>,
        rates: &mut Samples,
    ) -> Result<Samples> {
        let mut ratios = Samples::default();
        let mut untraced = f64::NAN;
        let seen = self.in_turn(tracer, pair, |pair, traced| {
            let rate = pair.trips_a_second(self.time())?;
            if traced {
                ratios.push(rate / untraced);
            } else {
                rates.push(rate);
                untraced = rate;
            }
            Ok(())
        })?;
        costs.extend(seen);
        Ok(ratios)
    }

    /// Measures without and with the tracer, in turn.
    fn in_turn(
        &self,
        tracer: Tracer,
        load: &mut Load,
        mut measure: impl FnMut(&mut Load, bool) -> Result<()>,
    ) -> Result<Vec<Cost>> {
        let mut costs = Vec::new();
        for _ in 0..self.pairs {
            measure(load, false)?;
            let attached = tracer.attach(&workspace::built("release"), &load.pids)?;
            measure(load, true)?;
            costs.push(attached.detach()?);
        }
        Ok(costs)
    }

    /// What processes pay that nobody traces, while shmtrace traces another: nanoseconds more for a call.
    fn bystanders(&self) -> Result<Vec<(&'static str, Samples, Samples)>> {
        eprintln!("measuring bystanders");
        let mut traced_pair = self.pair(Placement::Spin)?;
        traced_pair.trips_a_second(Duration::from_millis(100))?;
        let mut bystander = Load::alone(&workspace::built("release"))?;
        let mut rows = vec![
            ("getppid", Samples::default(), Samples::default()),
            ("sendrecv", Samples::default(), Samples::default()),
        ];
        for _ in 0..self.pairs {
            let mut before = Vec::new();
            for (what, untraced, _) in &mut rows {
                let nanos = bystander.per_call(what, self.time())?;
                untraced.push(nanos);
                before.push(nanos);
            }
            let attached =
                Tracer::Shmtrace.attach(&workspace::built("release"), &traced_pair.pids)?;
            for ((what, _, more), before) in rows.iter_mut().zip(before) {
                more.push(bystander.per_call(what, self.time())? - before);
            }
            attached.detach()?;
        }
        Ok(rows)
    }

    /// What shmtrace needs for 31 plugins that sleep.
    fn idle(&self) -> Result<Idle> {
        eprintln!("measuring an idle tree");
        let programs = workspace::built("release");
        let mut host = process::command(
            &programs.join("rapace-peer-04").to_string_lossy(),
            ["host", "--plugins", "31"],
        );
        host.args(["--round-trips", "0", "--gap", "1h"])
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null());
        let host = process::Guard(host.spawn().context("cannot start rapace-peer-04")?);
        thread::sleep(Duration::from_secs(2));
        let attached = Tracer::Shmtrace.attach(&programs, &[host.0.id()])?;
        let time = self.time() * 10;
        thread::sleep(time);
        let cost = attached.detach()?;
        host.end()?;
        // Half a second passes between the attachment and the start of the clock; it is not counted.
        Ok(Idle {
            share: cost.cpu.as_secs_f64() / time.as_secs_f64(),
            resident_kib: cost.resident_kib,
        })
    }

    fn pair(&self, placement: Placement) -> Result<Load> {
        let mut pair = Load::pair(&workspace::built("release"), &self.transport, placement)?;
        // The first trips pay for page faults and the plugin's start.
        pair.trips_a_second(Duration::from_millis(200))?;
        Ok(pair)
    }

    fn time(&self) -> Duration {
        Duration::from_millis(self.millis)
    }
}

/// Measured by a program of its own, which needs no tracer but strace, to count system calls.
fn transport() -> Result<()> {
    Tracer::Strace.install()?;
    process::run(workspace::cargo("build").args([
        "--release",
        "--package",
        "rapace-peers",
        "--bin",
        "transport-bench",
    ]))?;
    let docs = workspace::root().join("docs");
    fs::create_dir_all(&docs).with_context(|| format!("cannot create {}", docs.display()))?;
    let report = docs.join("transport-bench.md");
    let program = workspace::built("release").join("transport-bench");
    process::run(process::command(&program.to_string_lossy(), ["--output"]).arg(report))
}
