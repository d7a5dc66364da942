//! `shmtrace inspect`: a hub file as it is, living or dead.

mod snapshot;
mod text;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;

use crate::{
    cli::PidTree,
    commands::watch::{in_runtime, told_to_stop},
    discover::{Discovery, Hub},
    exit::{Exit, Refusal},
    hub::{HubError, HubProblem, HubReader},
    observe::mono_now,
    process,
    report::{Page, printable, write_json},
    teardown::HubFile,
};

pub(super) use snapshot::peer_flags;
pub(super) use text::seconds;

use snapshot::{HeaderShot, Mapper, Snapshot};

/// Arguments of `inspect`.
#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// A hub file, in use or left behind
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,

    #[command(flatten)]
    trees: PidTree,

    /// One JSON object per hub
    #[arg(long, env = "SHMTRACE_JSON")]
    json: bool,

    /// Look again and again, at this interval; redraws on a terminal
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, require_equals = true, default_missing_value = "1s",
          env = "SHMTRACE_WATCH", value_parser = humantime::parse_duration)]
    watch: Option<Duration>,

    /// List every slot that is not free and every waiting descriptor, not the first 16
    #[arg(long, short = 'a', env = "SHMTRACE_ALL")]
    all: bool,
}

impl Inspect {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<Exit> {
        if self.file.is_some() != self.trees.is_empty() {
            return Err(Refusal::usage("give either a hub file or --pid-tree PID..., as in `shmtrace inspect /tmp/dodeca-hub-PID.shm`").into());
        }
        let Some(interval) = self.watch else {
            let shots = self.look()?;
            self.print(&shots)?;
            let sound = shots.iter().all(|shot| shot.violations.is_empty());
            return Ok(if sound { Exit::Clean } else { Exit::Error });
        };
        in_runtime(async {
            let stop = told_to_stop()?;
            tokio::pin!(stop);
            let mut page = Page::new().filter(|_| !self.json);
            loop {
                let shots = self.look()?;
                match &mut page {
                    Some(page) => {
                        let texts = shots.iter().map(|shot| text::render(shot, self.all));
                        page.draw(&texts.collect::<String>())
                            .context("cannot write to stdout")?;
                    }
                    None => self.print(&shots)?,
                }
                tokio::select! {
                    () = &mut stop => return Ok(Exit::Clean),
                    () = tokio::time::sleep(interval) => {}
                }
            }
        })
    }

    fn look(&self) -> anyhow::Result<Vec<Snapshot>> {
        match &self.file {
            Some(file) => look_at_file(file).map(|shot| vec![shot]),
            None => look_at_trees(&self.trees.roots()?),
        }
    }

    fn print(&self, shots: &[Snapshot]) -> anyhow::Result<()> {
        let mut out = anstream::stdout().lock();
        for shot in shots {
            if self.json {
                write_json(&mut out, shot)?;
                writeln!(out)?;
            } else {
                write!(out, "{}", text::render(shot, self.all))?;
            }
        }
        out.flush().context("cannot write to stdout")
    }
}

/// A file by its name: also one that was cut short, and one that nobody maps.
fn look_at_file(path: &Path) -> anyhow::Result<Snapshot> {
    let (reader, problem) = HubReader::open_damaged(path).map_err(|error| refuse(path, error))?;
    let users = HubFile::look(path)
        .map(|file| file.users())
        .unwrap_or_default();
    let pids: Vec<u32> = users.seen.iter().map(|(pid, _)| *pid).collect();
    let mut discovery = Discovery::new();
    discovery.refresh(mono_now(), &pids);
    let name = reader.path().to_owned();
    let hub = discovery.hubs().find(|hub| same_file(hub, path));
    let mut shot = Snapshot::take(
        &reader,
        hub,
        now(),
        problem.map(|problem| problem.to_string()),
    );
    shot.path = name;
    shot.mapped_by = users
        .seen
        .into_iter()
        .map(|(pid, name)| Mapper { pid, name })
        .collect();
    shot.hidden_users = users.hidden;
    Ok(shot)
}

/// What processes of the trees map.
fn look_at_trees(roots: &[u32]) -> anyhow::Result<Vec<Snapshot>> {
    let pids = with_descendants(roots)?;
    let mut discovery = Discovery::new();
    let changes = discovery.refresh(mono_now(), &pids);
    for note in changes.in_words() {
        anstream::eprintln!("shmtrace: {}", printable(&note));
    }
    let shots: Vec<Snapshot> = discovery
        .hubs()
        .map(|hub| {
            let mut shot = Snapshot::take(hub.reader(), Some(hub), now(), None);
            shot.mapped_by = hub
                .participants()
                .iter()
                .map(|pid| Mapper {
                    pid: *pid,
                    name: discovery.name(*pid).unwrap_or_default().to_owned(),
                })
                .collect();
            shot
        })
        .collect();
    if shots.is_empty() {
        return Err(no_hub(&pids));
    }
    Ok(shots)
}

/// Why there is no hub among these processes: none maps one, or not all may be looked into.
pub(super) fn no_hub(pids: &[u32]) -> anyhow::Error {
    let hidden = pids
        .iter()
        .filter(|pid| {
            let maps = std::fs::File::open(format!("/proc/{pid}/maps"));
            maps.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
        })
        .count();
    if hidden > 0 {
        return Refusal::not_permitted(format!(
            "{hidden} of {} processes of the tree may not be looked into, and the others map no hub: run it with sudo",
            pids.len()
        ))
        .into();
    }
    anyhow::anyhow!(
        "no process of the tree maps a hub ({} looked at): give the pid of the host process or of one of its parents",
        pids.len()
    )
}

/// All processes of the trees; an error if a root does not exist.
pub(super) fn with_descendants(roots: &[u32]) -> anyhow::Result<Vec<u32>> {
    let mut pids: Vec<u32> = Vec::new();
    for root in roots {
        process::Process::open(*root).map_err(|_| {
            anyhow::anyhow!("no such process: {root} (is it still alive? see `ps -p {root}`)")
        })?;
        pids.push(*root);
    }
    let mut at = 0;
    while at < pids.len() {
        let children = process::children(pids[at]);
        pids.extend(
            children
                .into_iter()
                .filter(|child| !pids.contains(child))
                .collect::<Vec<_>>(),
        );
        at += 1;
    }
    Ok(pids)
}

fn same_file(hub: &Hub, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.ino() == hub.inode())
}

/// A refused file: its header is shown all the same, if it has one.
fn refuse(path: &Path, error: HubError) -> anyhow::Error {
    let header = HubReader::header_of(path).filter(|header| header.has_magic);
    if let Some(header) = header {
        anstream::eprint!("{}", text::header_lines(&HeaderShot::new(&header)));
    }
    match error.problem {
        HubProblem::Version { .. } => Refusal::not_permitted(error.to_string()).into(),
        _ => error.into(),
    }
}

/// What is printed of a hub, as text and as JSON, for fuzzers.
#[cfg(any(test, fuzzing))]
pub(crate) fn printed(reader: &HubReader, problem: Option<String>) -> [String; 2] {
    let shot = Snapshot::take(reader, None, now(), problem);
    let mut json = Vec::new();
    let written = write_json(&mut json, &shot);
    assert!(written.is_ok(), "{written:?}");
    [
        text::render(&shot, true),
        String::from_utf8_lossy(&json).into_owned(),
    ]
}

fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
