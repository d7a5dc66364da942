//! The command line.

use clap::{
    ArgAction, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
    builder::FalseyValueParser,
};
use tracing_subscriber::EnvFilter;

use crate::{
    commands::{self, guide::Guide},
    exit::{Exit, Refusal},
    limits,
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

/// The command line as clap knows it, with what the derived one lacks: examples and exit codes for each command, and
/// switches whose environment variable takes what people write (`SHMTRACE_QUIET=1`).
pub fn command() -> clap::Command {
    let completed = |command: clap::Command, name: &str| {
        let command = command.mut_args(|arg| match arg.get_action() {
            ArgAction::SetTrue => arg.value_parser(FalseyValueParser::new()),
            _ => arg,
        });
        match Guide::of(name) {
            Some(guide) => command.after_help(guide.help()),
            None => command,
        }
    };
    completed(Cli::command(), "").mut_subcommands(|command| {
        let name = command.get_name().to_owned();
        completed(command, &name)
    })
}

impl Cli {
    /// Reads the command line of this process; ends it with help or a usage error where that is due.
    pub fn from_args() -> Self {
        // A terminal without colours has none in a CI job either, where anstream would think otherwise.
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if dumb && !anstyle_query::clicolor_force() {
            anstream::ColorChoice::Never.write_global();
        }
        let matches = command().get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// Sends diagnostics to stderr, as `RUST_LOG` says (warnings and worse by default).
    pub fn init_diagnostics(&self) {
        // The probes name each process for which their table has no room; a watch says once that there are such.
        let usual = || EnvFilter::new("warn,shmtrace::tree=error");
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| usual());
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(anstream::stderr().current_choice() != anstream::ColorChoice::Never)
            .without_time()
            .init();
    }

    /// Runs what was asked for.
    pub fn run(self) -> anyhow::Result<Exit> {
        match &self.command {
            None | Some(Command::Watch(_) | Command::Record(_) | Command::Profile(_)) => {
                limits::require_pids_of_the_kernel(false)?;
            }
            Some(Command::Run(_)) => limits::require_pids_of_the_kernel(true)?,
            Some(_) => {}
        }
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
            Some(Command::Completions(completions)) => completions.run(command()),
            Some(Command::Man(man)) => man.run(command()),
            Some(Command::Schema(schema)) => schema.run(),
            None => self.watch.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::guide::GUIDES;

    fn commands() -> impl Iterator<Item = clap::Command> {
        let mut whole = command();
        whole.build();
        let commands: Vec<_> = whole
            .get_subcommands()
            .filter(|command| command.get_name() != "help")
            .cloned()
            .collect();
        commands.into_iter().chain([whole])
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_option_is_a_variable_too() {
        for command in commands() {
            for arg in command.get_opts().chain(
                command
                    .get_arguments()
                    .filter(|arg| matches!(arg.get_action(), ArgAction::SetTrue)),
            ) {
                let Some(long) = arg.get_long() else { continue };
                let wanted = format!("SHMTRACE_{}", long.to_uppercase().replace('-', "_"));
                let variable = arg
                    .get_env()
                    .map(|name| name.to_string_lossy().into_owned());
                assert_eq!(variable, Some(wanted), "{} --{long}", command.get_name());
            }
        }
    }

    #[test]
    fn every_command_has_a_guide_and_every_guide_a_command() {
        let there: Vec<String> = commands()
            .map(|command| command.get_name().to_owned())
            .collect();
        for name in &there {
            let name = if name == "shmtrace" { "" } else { name };
            let guide = Guide::of(name).unwrap_or_else(|| panic!("{name} has no guide"));
            assert!(
                !guide.examples.is_empty() && !guide.exits.is_empty(),
                "{name}"
            );
        }
        assert_eq!(there.len(), GUIDES.len());
    }

    /// An example that is no command line helps nobody.
    #[test]
    fn every_example_is_understood() {
        for guide in GUIDES {
            for (line, _) in guide.examples {
                let line = line.replace("$(pgrep ddc)", "4100 4101");
                let words = line
                    .split([' '])
                    .skip_while(|word| *word != "shmtrace")
                    .take_while(|word| !["|", ">"].contains(word));
                if let Err(error) = command().try_get_matches_from(words) {
                    panic!("{line}: {error}");
                }
            }
        }
    }
}
