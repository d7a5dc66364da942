//! `shmtrace profile`: a flame graph of a tree, on the CPU or off it.

mod asleep;

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use shmtrace_common::profile::Place;

use super::{inspect::with_descendants, watch};
use crate::{
    cli::PidTree,
    exit::{Exit, Refusal},
    observe::mono_now,
    output,
    profile::{Folded, Kind, Losses, Modules, Namer, Programs, escaped},
    report::StatusLine,
};

use asleep::Sleepers;

/// How often new mappings are read and a sign of life is shown. A process that starts and ends in between is sampled,
/// and its frames stay unnamed.
const REFRESH: Duration = Duration::from_millis(100);
/// Scans after which a tree that never stops forking is taken as it is; the programs know the rest.
const MOST_SCANS: usize = 16;
/// Shares of samples without a usable stack that are worth a word, in percent.
const WORTH_A_WORD: u64 = 5;

/// Arguments of `profile`.
#[derive(Debug, clap::Args)]
pub struct Profile {
    #[command(flatten)]
    trees: PidTree,

    /// Where it goes: a flame graph if the name ends in .svg, else folded stacks; without it, folded stacks on stdout
    #[arg(long, short, value_name = "FILE", env = "SHMTRACE_OUTPUT")]
    output: Option<PathBuf>,

    /// Show where the tree waits instead of where it runs
    #[arg(long, env = "SHMTRACE_OFF_CPU")]
    off_cpu: bool,

    /// Stop after this time
    #[arg(long, value_name = "DURATION", default_value = "10s", env = "SHMTRACE_DURATION", value_parser = humantime::parse_duration)]
    duration: Duration,

    /// Samples a second on each CPU
    #[arg(long, short = 'F', value_name = "HZ", default_value_t = 499, env = "SHMTRACE_FREQUENCY", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    frequency: u64,

    /// No sign of life
    #[arg(long, short, env = "SHMTRACE_QUIET")]
    quiet: bool,
}

/// What came out.
#[derive(Debug, Default)]
struct Outcome {
    folded: Folded,
    /// Samples, or microseconds.
    total: u64,
    /// Those of them without a usable stack of the program.
    without_stack: u64,
    losses: Losses,
}

impl Profile {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<Exit> {
        let roots = self.trees.roots()?;
        let pids = with_descendants(&roots)?;
        // Before an hour of sampling, not after it.
        let output = self.output.as_deref().map(create).transpose()?;
        let kind = if self.off_cpu {
            Kind::OffCpu
        } else {
            Kind::OnCpu {
                frequency: self.frequency,
            }
        };
        let mut programs = Programs::attach(kind)?;
        enter(&mut programs, &roots)?;
        let mut modules = Modules::default();
        let sleepers = self.off_cpu.then(|| Sleepers::note(&pids));
        let begun = Instant::now();
        watch::in_runtime(async {
            let stop = watch::told_to_stop()?;
            self.sample(&programs, &mut modules, stop).await;
            Ok(Exit::Clean)
        })?;
        let outcome = collect(&programs, &modules, sleepers, begun.elapsed());
        drop(programs);
        self.write(&outcome, output)?;
        self.say(&outcome);
        Ok(Exit::Clean)
    }

    /// Waits for the end, and follows the tree's mappings meanwhile.
    async fn sample(
        &self,
        programs: &Programs,
        modules: &mut Modules,
        stop: impl Future<Output = ()>,
    ) {
        let begun = Instant::now();
        let mut status = StatusLine::new(!self.quiet);
        tokio::pin!(stop);
        loop {
            let tree = programs.tree();
            modules.refresh(tree.iter().copied());
            let left = self.duration.saturating_sub(begun.elapsed());
            if status.is_wanted() {
                let seconds = begun.elapsed().as_secs_f32();
                let sum: u64 = programs.places().iter().map(|(_, amount)| amount).sum();
                let what = if self.off_cpu {
                    format!("{:.1} s of waits", sum as f64 / 1e9)
                } else {
                    format!("{sum} samples")
                };
                let line = format!(
                    "profiling: {seconds:.1} s, {what}, {} processes; ^C ends it",
                    tree.len()
                );
                let _unseen = status.show(&line);
            }
            if left.is_zero() || tree.is_empty() {
                break;
            }
            tokio::select! {
                () = &mut stop => break,
                () = tokio::time::sleep(left.min(REFRESH)) => {}
            }
        }
        let _unseen = status.clear();
    }

    fn write(&self, outcome: &Outcome, output: Option<File>) -> anyhow::Result<()> {
        let Some(file) = output else {
            let mut out = anstream::stdout().lock();
            for line in outcome.folded.lines() {
                writeln!(out, "{line}")?;
            }
            return Ok(());
        };
        let path = self.output.as_deref().unwrap_or(Path::new(""));
        let mut out = BufWriter::new(file);
        if path
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("svg"))
        {
            // inferno refuses to draw nothing.
            if !outcome.folded.is_empty() {
                self.draw(outcome, &mut out)
                    .with_context(|| format!("cannot draw {}", path.display()))?;
            }
        } else {
            for line in outcome.folded.lines() {
                writeln!(out, "{line}")?;
            }
        }
        out.flush()
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn draw(&self, outcome: &Outcome, out: &mut impl Write) -> io::Result<()> {
        let mut options = inferno::flamegraph::Options::default();
        let (title, unit) = if self.off_cpu {
            ("off CPU", "us")
        } else {
            ("on CPU", "samples")
        };
        options.title = format!("shmtrace: {title}");
        unit.clone_into(&mut options.count_name);
        let lines: Vec<String> = outcome.folded.lines().collect();
        inferno::flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), out)
    }

    /// What a person should know about it.
    fn say(&self, outcome: &Outcome) {
        if outcome.total == 0 {
            let hint = if self.off_cpu {
                "no waits: the tree was on the CPU all the time; try without --off-cpu"
            } else {
                "no samples: the tree was off the CPU all the time; try --off-cpu"
            };
            anstream::eprintln!("shmtrace: {hint}");
            return;
        }
        let unit = if self.off_cpu {
            "of the waits"
        } else {
            "of the samples"
        };
        if !self.quiet {
            let file = self
                .output
                .as_ref()
                .map(|path| format!(" in {}", path.display()));
            anstream::eprintln!(
                "shmtrace: {}{}",
                self.amount(outcome.total),
                file.unwrap_or_default()
            );
        }
        let share = outcome.without_stack * 100 / outcome.total;
        if share >= WORTH_A_WORD {
            anstream::eprintln!(
                "shmtrace: {} ({share} %) have no usable stack, and show what there is of it: the program or a library has no \
                 frame pointers; build it with RUSTFLAGS=\"-C force-frame-pointers=yes\", C with -fno-omit-frame-pointer",
                self.amount(outcome.without_stack)
            );
        }
        let Losses {
            stacks,
            samples,
            processes,
        } = outcome.losses;
        for (lost, what) in [
            (stacks, "stacks"),
            (samples, unit),
            (processes, "processes"),
        ] {
            if lost > 0 {
                anstream::eprintln!(
                    "shmtrace: a table was full: {lost} {what} not kept; use a shorter --duration or a lower --frequency"
                );
            }
        }
    }

    /// An amount with its unit.
    fn amount(&self, amount: u64) -> String {
        if self.off_cpu {
            let waits = Duration::from_millis(amount / 1_000);
            format!("{} of waits", humantime::format_duration(waits))
        } else {
            format!("{amount} samples")
        }
    }
}

/// Creates the file, so that a wrong name is known before the work is done.
fn create(path: &Path) -> anyhow::Result<File> {
    output::create(path).map_err(|error| {
        Refusal::usage(format!(
            "cannot write {}: {error}; give another --output",
            path.display()
        ))
        .into()
    })
}

/// Enters the trees: scan, enter, scan again, until there is nothing new.
fn enter(programs: &mut Programs, roots: &[u32]) -> anyhow::Result<()> {
    for _ in 0..MOST_SCANS {
        let known = programs.tree();
        let mut new = false;
        for pid in with_descendants(roots)? {
            if !known.contains(&pid) {
                programs
                    .enter(pid)
                    .context("the table of processes is full")?;
                new = true;
            }
        }
        if !new {
            break;
        }
    }
    Ok(())
}

/// Puts everything together.
fn collect(
    programs: &Programs,
    modules: &Modules,
    sleepers: Option<Sleepers>,
    lasted: Duration,
) -> Outcome {
    let mut namer = Namer::new();
    let mut outcome = Outcome {
        losses: programs.losses(),
        ..Outcome::default()
    };
    let mut add = |place: &Place, amount: u64| {
        let (user, usable) = namer.user(modules, place.pid, &programs.stack(place.user));
        let kernel = namer.kernel(&programs.stack(place.kernel));
        if amount == 0 {
            return;
        }
        outcome.total += amount;
        if !usable {
            outcome.without_stack += amount;
        }
        let mut frames = thread_frames(modules, place.pid, &place.comm);
        frames.extend(user);
        frames.extend(kernel);
        outcome.folded.add(&frames, amount);
    };
    let Some(sleepers) = sleepers else {
        for (place, samples) in programs.places() {
            add(&place, samples);
        }
        return outcome;
    };
    let now = mono_now().0;
    let waiting = programs.waiting();
    for (place, ns) in programs.places() {
        add(&place, ns / 1_000);
    }
    for (_, waiting) in &waiting {
        add(&waiting.place, now.saturating_sub(waiting.since) / 1_000);
    }
    let seen: Vec<u32> = waiting.into_iter().map(|(tid, _)| tid).collect();
    for (place, frames, usable) in sleepers.still_asleep(&seen, modules, &mut namer) {
        let amount = u64::try_from(lasted.as_micros()).unwrap_or(u64::MAX);
        outcome.total += amount;
        if !usable {
            outcome.without_stack += amount;
        }
        let mut stack = thread_frames(modules, place.pid, &place.comm);
        stack.extend(frames);
        outcome.folded.add(&stack, amount);
    }
    outcome
}

/// Process and thread, the outermost frames.
fn thread_frames(modules: &Modules, pid: u32, comm: &[u8; 16]) -> Vec<String> {
    let end = comm
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(comm.len());
    let thread = String::from_utf8_lossy(&comm[..end]);
    // A process that started and ended between two looks has its main thread's name, as a rule.
    let process = modules.name(pid).unwrap_or(&thread);
    vec![escaped(process), escaped(&thread)]
}
