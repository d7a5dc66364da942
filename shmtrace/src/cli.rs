//! The command line.

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::{
    commands,
    exit::{Exit, Refusal},
};

/// Finds lost wakeups of shared-memory hubs live, with proof.
///
/// `shmtrace --pid-tree PID...` traces the trees of these processes (the same as `shmtrace watch`) and prints a
/// finding the moment it is proven.
#[derive(Debug, Parser)]
#[command(
    name = "shmtrace",
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true
)]
#[command(
    after_help = "Exit codes: 0 clean; 1 runtime error; 2 usage; 3 a finding that --fail-on names; \
    4 only inconclusive; 5 not permitted or not supported here."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    watch: commands::watch::Watch,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Trace process trees live until ^C, --duration, or the last process ends
    Watch(commands::watch::Watch),
    /// Watch, and keep everything that was seen in a file
    Record(commands::record::Record),
    /// Judge a recording again, with the same engine
    Replay(commands::record::Replay),
    /// Print the transport's diagnostics, read from outside, and what they mean
    Dump(commands::dump::Dump),
    /// Show a hub file: header, peers, rings, slots, who maps it, and whether it holds together
    Inspect(commands::inspect::Inspect),
    /// Start a command under a memory limit and trace it from its first instruction
    Run(commands::run::Run),
    /// End exactly a process tree, then remove the hub files that nobody maps any more
    Kill(commands::kill::Kill),
    /// Sample the tree: a flame graph of where it runs, or where it waits
    Profile(commands::profile::Profile),
    /// Ring a stuck lane's doorbell once more, and say what came of it
    Nudge(commands::nudge::Nudge),
    /// Can it run here: kernel, rights, probes, limits; each "no" with its remedy
    Doctor(commands::doctor::Doctor),
    /// What a finding means, and what to look at
    Explain(commands::explain::Explain),
    /// Print the completion script of a shell
    Completions(commands::shell::Completions),
    /// Print the manual page, or write all of them
    Man(commands::shell::Man),
    /// Print the JSON Schema of --format json
    Schema(commands::shell::Schema),
}

/// Which trees: `--pid-tree PID...`, as `$(pgrep ddc)` yields them.
#[derive(Debug, Clone, Args)]
pub struct PidTree {
    /// Roots of the trees: separate words, one line, or comma separated
    #[arg(
        long = "pid-tree",
        value_name = "PID",
        num_args = 1..,
        env = "SHMTRACE_PID_TREE",
        value_delimiter = ',',
        value_parser = parse_pids
    )]
    lists: Vec<Pids>,
}

/// The pids of one word of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pids(Vec<u32>);

impl PidTree {
    /// None given.
    pub fn is_empty(&self) -> bool {
        self.lists.iter().all(|list| list.0.is_empty())
    }

    /// The roots, each once, in the order given; no root at all is wrong usage.
    pub fn roots(&self) -> Result<Vec<u32>, Refusal> {
        let mut pids = Vec::new();
        for pid in self.lists.iter().flat_map(|list| &list.0) {
            if !pids.contains(pid) {
                pids.push(*pid);
            }
        }
        if pids.is_empty() {
            return Err(Refusal::usage(
                "no process given: try `shmtrace --pid-tree PID...`, or `shmtrace --help`",
            ));
        }
        Ok(pids)
    }
}

/// Pids separated by white space within one word: `"$(pgrep ddc)"`, quoted, has line ends in it.
fn parse_pids(word: &str) -> Result<Pids, String> {
    word.split_whitespace()
        .map(|pid| match pid.parse() {
            Ok(0) | Err(_) => Err(format!("{pid:?} is not a process id")),
            Ok(pid) => Ok(pid),
        })
        .collect::<Result<Vec<u32>, String>>()
        .map(Pids)
}

impl Cli {
    /// Sends diagnostics to stderr, as `RUST_LOG` says (warnings and worse by default).
    pub fn init_diagnostics(&self) {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .without_time()
            .init();
    }

    /// Runs what was asked for.
    pub fn run(self) -> anyhow::Result<Exit> {
        match self.command {
            Some(Command::Watch(watch)) => watch.run(),
            Some(Command::Record(record)) => record.run(),
            Some(Command::Replay(replay)) => replay.run(),
            Some(Command::Dump(dump)) => dump.run(),
            Some(Command::Inspect(inspect)) => inspect.run(),
            Some(Command::Run(run)) => run.run(),
            Some(Command::Kill(kill)) => kill.run(),
            Some(Command::Profile(profile)) => profile.run(),
            Some(Command::Nudge(nudge)) => nudge.run(),
            Some(Command::Doctor(doctor)) => doctor.run(),
            Some(Command::Explain(explain)) => explain.run(),
            Some(Command::Completions(completions)) => completions.run(Self::command()),
            Some(Command::Man(man)) => man.run(Self::command()),
            Some(Command::Schema(schema)) => schema.run(),
            None => self.watch.run(),
        }
    }
}
