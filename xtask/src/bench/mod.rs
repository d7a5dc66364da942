//! `cargo xtask bench`: what tracing costs, side by side in one run.
//!
//! Each figure is measured on processes that keep running while a tracer comes and goes: without, with, without, with. So
//! both halves of a pair see the same machine, and what the machine does to all of them drops out of the ratio.

mod accounting;
mod delay;
mod figures;
mod goals;
mod growth;
mod load;
mod parts;
mod programs;
mod report;
mod tracer;

use std::{fs, path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::{process, setup, test, workspace};
use load::{Load, Placement};
use report::{Bystander, Idle, Report, Row};
use tracer::{Attached, Cost, Tracer};

/// Where the part of the report begins that a person wrote.
const REMARKS: &str = "\n## What stands in the way";
/// Round trips in SPIN vary with where the hypervisor lets the processors run: so many times as many pairs.
const SPIN_MORE: u32 = 3;
/// How long a load runs before it is measured, with and without a tracer: shmtrace takes a tenth of a second to see that it
/// is a heavy one, and another to do without what that makes dear.
const WARM_UP: Duration = Duration::from_millis(300);
/// A reader is stopped for so long at a time. Its buffers take what is recorded meanwhile; the report says so if not.
const STOPPED: Duration = Duration::from_millis(20);
/// An idle tree is watched for so many windows of this length: the first ones show the looks at what is new.
const IDLE_WINDOWS: usize = 4;
const IDLE_WINDOW: Duration = Duration::from_secs(10);

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
        workspace::build_release(&["shmtrace", "bench-load", "rapace-peers", "ddc-sim"])?;
        // Classic tracepoints are found there.
        test::mount_tracefs()?;

        let mut report = Report::default();
        let mut tracers = vec![Tracer::Shmtrace, Tracer::Sparing, Tracer::Stopped];
        match workspace::build_release_example("shmtrace", "floor") {
            Ok(()) => tracers.extend(tracer::FLOORS),
            Err(error) => report.absent.push(format!("floors: {error:#}")),
        }
        let others: &[Tracer] = if self.alone { &[] } else { &tracer::OTHERS };
        for &other in others {
            match other.install() {
                Ok(()) => tracers.push(other),
                Err(error) => report.absent.push(format!("{}: {error:#}", other.name())),
            }
        }
        report.rows = self.compare(&tracers)?;
        tracers.retain(|tracer| tracer.is_light() && *tracer != Tracer::Stopped);
        report.bystanders = self.bystanders(&tracers)?;
        if tracers.contains(&tracer::FLOORS[0]) {
            report.timed = programs::measure(self, &mut report.absent)?;
        }
        report.parts = parts::measure(self, &mut report.absent);
        report.growth = growth::measure(self)?;
        report.delays = delay::measure(self)?;
        report.idle = Self::idle(&[])?;
        report.idle_without_canary = Self::idle(&["--no-canary"])?;
        report.accounts = accounting::measure(&self.transport)?;
        report.program_bytes = program_bytes()?;
        let text = report.text(self);
        println!("\n{text}");
        let output = workspace::root().join(&self.output);
        if let Some(folder) = output.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        // What was made of the figures of another run is kept, to be compared with these.
        let before = fs::read_to_string(&output).unwrap_or_default();
        let remarks = before.find(REMARKS).map_or("", |at| &before[at..]);
        fs::write(&output, format!("{text}{remarks}"))
            .with_context(|| format!("cannot write {}", output.display()))
    }

    /// All that is measured of each tracer, on the same processes.
    fn compare(&self, tracers: &[Tracer]) -> Result<Vec<Row>> {
        let mut rows: Vec<Row> = tracers.iter().map(|tracer| Row::new(*tracer)).collect();
        let rate = |load: &mut Load, time| Ok([load.trips_a_second(time)?]);
        eprintln!("measuring SAME");
        let mut pair = self.pair(Placement::Same)?;
        self.in_turn(
            &mut rows,
            &mut pair,
            self.pairs,
            |_| true,
            rate,
            |row, seen| {
                row.same.push(seen.traced[0] / seen.untraced[0]);
                row.same_untraced.push(seen.untraced[0]);
                row.costs.push(seen.cost);
            },
        )?;
        drop(pair);

        eprintln!("measuring SPIN");
        let mut pair = self.pair(Placement::Spin)?;
        let often = self.pairs * SPIN_MORE;
        self.in_turn(
            &mut rows,
            &mut pair,
            often,
            |_| true,
            rate,
            |row, seen| {
                row.spin.push(seen.traced[0] / seen.untraced[0]);
                row.spin_untraced.push(seen.untraced[0]);
                row.costs.push(seen.cost);
            },
        )?;

        eprintln!("measuring paced");
        let paced = |load: &mut Load, time| load.paced(time);
        let runs = |tracer| tracer != Tracer::Stopped;
        self.in_turn(
            &mut rows,
            &mut pair,
            self.pairs,
            runs,
            paced,
            |row, seen| {
                for (at, (traced, untraced)) in
                    seen.traced.into_iter().zip(seen.untraced).enumerate()
                {
                    row.paced[at].push(traced);
                    row.paced_untraced[at].push(untraced);
                }
            },
        )?;
        drop(pair);

        eprintln!("measuring micro");
        let mut doorbell = Load::doorbell(&workspace::built("release"), &self.transport, "0", 0)?;
        let call = |load: &mut Load, time| Ok([load.per_call("micro", time)?]);
        self.in_turn(
            &mut rows,
            &mut doorbell,
            self.pairs,
            runs,
            call,
            |row, seen| {
                row.micro.push(seen.traced[0] - seen.untraced[0]);
                row.micro_untraced.push(seen.untraced[0]);
            },
        )?;
        Ok(rows)
    }

    /// Measures with each tracer in turn and without any before and after each.
    fn in_turn<const FIGURES: usize>(
        &self,
        rows: &mut [Row],
        load: &mut Load,
        rounds: u32,
        measures: impl Fn(Tracer) -> bool,
        mut run: impl FnMut(&mut Load, Duration) -> Result<[f64; FIGURES]>,
        mut keep: impl FnMut(&mut Row, Seen<FIGURES>),
    ) -> Result<()> {
        let measure = |load: &mut Load, run: &mut dyn FnMut(&mut Load, Duration) -> _| {
            run(load, WARM_UP)?;
            run(load, self.time())
        };
        let mut before = measure(load, &mut run)?;
        for round in 0..rounds {
            for row in &mut *rows {
                if round >= self.pairs && !row.tracer.is_light() || !measures(row.tracer) {
                    continue;
                }
                let attached = row
                    .tracer
                    .attach(&workspace::built("release"), &load.pids)?;
                let traced = match row.tracer {
                    Tracer::Stopped => self.while_stopped(&attached, load, &mut run)?,
                    _ => measure(load, &mut run)?,
                };
                let cost = attached.detach()?;
                let after = measure(load, &mut run)?;
                let untraced = std::array::from_fn(|at| f64::midpoint(before[at], after[at]));
                keep(
                    row,
                    Seen {
                        untraced,
                        traced,
                        cost,
                    },
                );
                before = after;
            }
        }
        Ok(())
    }

    /// The mean over times in which the tracer is stopped, as long in all as any other measurement.
    fn while_stopped<const FIGURES: usize>(
        &self,
        attached: &Attached,
        load: &mut Load,
        run: &mut impl FnMut(&mut Load, Duration) -> Result<[f64; FIGURES]>,
    ) -> Result<[f64; FIGURES]> {
        run(load, WARM_UP)?;
        let times = (self.millis / STOPPED.as_millis() as u64).max(1);
        let mut sum = [0.0; FIGURES];
        for _ in 0..times {
            let seen = attached.stopped(|| run(load, STOPPED))?;
            for (sum, seen) in sum.iter_mut().zip(seen) {
                *sum += seen;
            }
            // It catches up.
            run(load, STOPPED)?;
        }
        Ok(sum.map(|sum| sum / times as f64))
    }

    /// What processes pay that nobody traces, while another is traced: nanoseconds more for a call.
    fn bystanders(&self, tracers: &[Tracer]) -> Result<Vec<Bystander>> {
        eprintln!("measuring bystanders");
        let mut traced_pair = self.pair(Placement::Spin)?;
        traced_pair.trips_a_second(Duration::from_millis(100))?;
        let mut bystander = Load::alone(&workspace::built("release"))?;
        let mut rows: Vec<Bystander> = tracers.iter().map(|of| Bystander::new(*of)).collect();
        let mut look = || -> Result<[f64; 2]> {
            let mut nanos = [0.0; 2];
            for (nanos, call) in nanos.iter_mut().zip(report::BYSTANDING) {
                *nanos = bystander.per_call(call, self.time())?;
            }
            Ok(nanos)
        };
        let mut before = look()?;
        for _ in 0..self.pairs {
            for row in &mut rows {
                let attached = row
                    .tracer
                    .attach(&workspace::built("release"), &traced_pair.pids)?;
                let traced = look()?;
                attached.detach()?;
                let after = look()?;
                for (at, nanos) in traced.into_iter().enumerate() {
                    let untraced = f64::midpoint(before[at], after[at]);
                    row.untraced[at].push(untraced);
                    row.added[at].push(nanos - untraced);
                }
                before = after;
            }
        }
        Ok(rows)
    }

    /// What shmtrace needs for 31 plugins that sleep.
    fn idle(options: &[&str]) -> Result<Idle> {
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
        let attached = Tracer::Shmtrace.attach_with(&programs, &[host.0.id()], options)?;
        let mut before = tracer::cpu_time(attached.pid())?;
        let mut shares = Vec::new();
        let mut resident_kib = Vec::new();
        for _ in 0..IDLE_WINDOWS {
            resident_kib.push(tracer::resident_kib(attached.pid())?);
            thread::sleep(IDLE_WINDOW);
            let now = tracer::cpu_time(attached.pid())?;
            shares.push(now.saturating_sub(before).as_secs_f64() / IDLE_WINDOW.as_secs_f64());
            before = now;
        }
        resident_kib.push(tracer::resident_kib(attached.pid())?);
        let cost = attached.detach()?;
        host.end()?;
        Ok(Idle {
            shares,
            resident_kib,
            attach: cost.attach,
            detach: cost.detach,
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

/// One measurement with a tracer, and the mean of those before and after it.
struct Seen<const FIGURES: usize> {
    untraced: [f64; FIGURES],
    traced: [f64; FIGURES],
    cost: Cost,
}

/// Bytes of shmtrace without symbols and debugging information.
fn program_bytes() -> Result<u64> {
    let program = workspace::built("release").join("shmtrace");
    let stripped = program.with_extension("stripped");
    process::run(
        process::command("strip", ["--strip-all", "-o"])
            .arg(&stripped)
            .arg(&program),
    )?;
    let bytes = fs::metadata(&stripped)
        .context("no stripped program")?
        .len();
    fs::remove_file(&stripped).context("cannot remove the stripped program")?;
    Ok(bytes)
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
