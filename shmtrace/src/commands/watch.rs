//! `shmtrace watch`: trace trees live.

use std::{collections::BTreeSet, io, path::PathBuf, time::Duration};

use clap::ValueEnum;
use shmtrace_engine::{Code, Direction, PeerId};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cli::PidTree,
    exit::{self, Exit},
    probes,
    report::{Json, Report, Text, WallClock},
    rights::Role,
    session::{Ended, FailOn, Options, Session},
};

/// Longer watches have a canary by themselves, and it is to be found this often.
const LONG: Duration = Duration::from_secs(60);
/// A canary at most this often.
const MOST_OFTEN: Duration = Duration::from_secs(1);

/// Arguments of `watch`.
#[derive(Debug, clap::Args)]
pub struct Watch {
    #[command(flatten)]
    trees: PidTree,

    #[command(flatten)]
    tracing: Tracing,
}

/// Options of every command that traces.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Tracing")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "switches of the command line, no states of one machine"
)]
pub struct Tracing {
    /// How long a stuck state must stay unchanged before it is reported as missed
    #[arg(long, value_name = "DURATION", default_value = "50ms", env = "SHMTRACE_GRACE", value_parser = humantime::parse_duration)]
    grace: Duration,

    /// Stop after this time
    #[arg(long, value_name = "DURATION", env = "SHMTRACE_DURATION", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,

    /// What to print: text for people, json for scripts (one object a line)
    #[arg(long, value_enum, default_value_t, env = "SHMTRACE_FORMAT")]
    format: Format,

    /// Print a line for every doorbell event, too
    #[arg(long, env = "SHMTRACE_EVENTS")]
    events: bool,

    /// Show findings of these peers only (ids, comma separated)
    #[arg(
        long = "peer",
        value_name = "ID",
        value_delimiter = ',',
        env = "SHMTRACE_PEER"
    )]
    peers: Vec<u16>,

    /// Show findings of lanes in this direction only
    #[arg(long, value_enum, value_name = "DIRECTION", env = "SHMTRACE_LANE")]
    lane: Option<Lane>,

    /// Show findings of these classes only, as `shmtrace explain` lists them
    #[arg(long = "code", value_name = "CODE", value_delimiter = ',', value_parser = parse_code, env = "SHMTRACE_CODE")]
    codes: Vec<Code>,

    /// Exit with status 3 if one of these is found: classes as `shmtrace explain` lists them, "masked", or "any"
    #[arg(long, value_name = "CODE", value_delimiter = ',', value_parser = parse_failure, env = "SHMTRACE_FAIL_ON")]
    fail_on: Vec<Failure>,

    /// Everything being quiet for this long is a finding: for builds, not for servers
    #[arg(long, value_name = "DURATION", env = "SHMTRACE_EXPECT_PROGRESS", value_parser = humantime::parse_duration)]
    expect_progress: Option<Duration>,

    /// Record everything to this file, for `shmtrace replay`
    #[arg(long, value_name = "FILE", env = "SHMTRACE_RECORD")]
    record: Option<PathBuf>,

    /// Record the seconds before and after each finding to files in this directory
    #[arg(long, value_name = "DIR", env = "SHMTRACE_RECORD_FINDINGS")]
    record_findings: Option<PathBuf>,

    /// Lose a wakeup this often in a hub of shmtrace's own: where that is not found, the watch is blind and says so. In
    /// watches without --duration, or with more than a minute, each minute
    #[arg(long, value_name = "DURATION", env = "SHMTRACE_CANARY", value_parser = humantime::parse_duration)]
    canary: Option<Duration>,

    /// No such test of the watch itself
    #[arg(long, env = "SHMTRACE_NO_CANARY", conflicts_with = "canary")]
    no_canary: bool,

    /// Do without seeing sends on closed fds on kernels where that makes every system call of every process some 40 ns
    /// dearer (those that refuse fexit programs): what never rang and what could not ring are not told apart then
    #[arg(long, env = "SHMTRACE_WITHOUT_FAILED_SENDS")]
    without_failed_sends: bool,

    /// Print findings only
    #[arg(long, short, env = "SHMTRACE_QUIET", conflicts_with = "verbose")]
    quiet: bool,

    /// Print suspects, too: states that may turn out to be nothing
    #[arg(long, short, env = "SHMTRACE_VERBOSE")]
    verbose: bool,
}

/// Output format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
}

/// Direction of a lane, as on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Lane {
    /// What the host sends to a peer (also: to-peer)
    #[value(name = "host->peer", alias = "to-peer")]
    ToPeer,
    /// What a peer sends to the host (also: to-host)
    #[value(name = "peer->host", alias = "to-host")]
    ToHost,
}

impl Lane {
    /// As the engine calls it.
    pub(crate) fn direction(self) -> Direction {
        match self {
            Self::ToPeer => Direction::ToPeer,
            Self::ToHost => Direction::ToHost,
        }
    }
}

/// One word of `--fail-on`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    Any,
    Masked,
    Code(Code),
}

fn parse_code(word: &str) -> Result<Code, String> {
    Code::ALL
        .into_iter()
        .find(|code| code.as_str() == word)
        .ok_or_else(|| {
            let known: Vec<&str> = Code::ALL.into_iter().map(Code::as_str).collect();
            format!("no such class; there are {}", known.join(", "))
        })
}

fn parse_failure(word: &str) -> Result<Failure, String> {
    match word {
        "any" => Ok(Failure::Any),
        "masked" => Ok(Failure::Masked),
        code => parse_code(code)
            .map(Failure::Code)
            .map_err(|e| format!("{e}, masked, any")),
    }
}

impl Watch {
    /// Traces until it is told to stop.
    pub fn run(self) -> anyhow::Result<Exit> {
        watch(&self.tracing, &self.tracing.options(self.trees.roots()?))
    }
}

/// Traces as the options say, until it is told to stop.
pub(crate) fn watch(tracing: &Tracing, options: &Options) -> anyhow::Result<Exit> {
    let mut report = tracing.report(options.clock);
    in_runtime(async {
        // First: once the header is out, whoever reads it may tell us to stop.
        let stop = told_to_stop()?;
        let mut session = Session::start(options, report.as_mut())?;
        let ended = session.run(stop).await?;
        conclude(session, ended)
    })
}

/// Runs a future that traces on a runtime of one thread: the loop needs no more, and fewer threads disturb less.
pub(crate) fn in_runtime(
    future: impl Future<Output = anyhow::Result<Exit>>,
) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match runtime.block_on(future) {
        // Like every Unix filter: a reader that has seen enough is no error.
        Err(error) if exit::is_broken_pipe(&error) => Ok(Exit::Clean),
        other => other,
    }
}

/// Ends a session in order and says what a person should know about how it went.
pub(crate) fn conclude(session: Session<'_>, ended: Ended) -> anyhow::Result<Exit> {
    let verdict = session.finish()?;
    if verdict.blind {
        let why = match ended {
            Ended::TreeGone => "the traced processes ended without one",
            Ended::Stopped => "none appeared while it watched",
        };
        anstream::eprintln!(
            "shmtrace: no process of the tree maps a hub ({why}), so nothing could be judged; \
             give the pid of the host process or of one of its parents"
        );
    }
    Ok(verdict.exit)
}

/// Completes on SIGINT or SIGTERM.
pub(crate) fn told_to_stop() -> anyhow::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

impl Tracing {
    /// Findings only.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// The session's settings for these roots.
    pub(crate) fn options(&self, roots: Vec<u32>) -> Options {
        let mut fail_on = FailOn::default();
        for failure in &self.fail_on {
            match failure {
                Failure::Any => fail_on.any = true,
                Failure::Masked => fail_on.masked = true,
                Failure::Code(code) => drop(fail_on.codes.insert(*code)),
            }
        }
        Options {
            clock: WallClock::start(),
            roots,
            grace_ns: nanos(self.grace),
            duration: self.duration,
            expect_progress_ns: self.expect_progress.map(nanos),
            events: self.events,
            verbose: self.verbose,
            peers: self.peers.iter().copied().map(PeerId).collect(),
            lane: self.lane.map(Lane::direction),
            codes: self.codes.iter().copied().collect::<BTreeSet<_>>(),
            fail_on,
            record: self.record.clone(),
            record_findings: self.record_findings.clone(),
            buffer_bytes: probes::DEFAULT_BUFFER_BYTES,
            failed_sends: !self.without_failed_sends,
            canary: self.canary(),
            role: Role::Watch,
        }
    }

    /// How often a canary is to be found: in long watches by itself.
    fn canary(&self) -> Option<Duration> {
        let is_long = self.duration.is_none_or(|duration| duration > LONG);
        let wanted = self.canary.or(is_long.then_some(LONG))?;
        (!self.no_canary).then_some(wanted.max(MOST_OFTEN))
    }

    /// Where results go.
    pub(crate) fn report(&self, clock: WallClock) -> Box<dyn Report> {
        match self.format {
            Format::Text => Box::new(Text::new(anstream::stdout(), clock, self.quiet)),
            Format::Json => Box::new(Json::new(io::BufWriter::new(io::stdout()), clock)),
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
