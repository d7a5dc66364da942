//! `shmtrace kill`: end exactly a tree, then remove the hub files that nobody maps any more.

use std::{collections::BTreeSet, io::Write, path::PathBuf, time::Duration};

use anyhow::Context as _;
use rustix::process::Signal;

use crate::{
    cli::PidTree,
    exit::{Exit, Refusal},
    report::printable,
    teardown::{Ended, HubFile, TeardownError, Tree, Users, hubs_of, stale_hubs},
};

/// Arguments of `kill`.
#[derive(Debug, clap::Args)]
pub struct Kill {
    #[command(flatten)]
    trees: PidTree,

    /// SIGKILL what has not ended this long after SIGTERM
    #[arg(long, value_name = "DURATION", default_value = "5s", env = "SHMTRACE_TIMEOUT", value_parser = humantime::parse_duration)]
    timeout: Duration,

    /// Only list what would be ended and removed
    #[arg(long, short = 'n', env = "SHMTRACE_DRY_RUN")]
    dry_run: bool,

    /// Remove all hub files in --hub-dir that no process maps, whoever left them
    #[arg(long, env = "SHMTRACE_STALE")]
    stale: bool,

    /// Where --stale looks for hub files
    #[arg(
        long = "hub-dir",
        value_name = "DIR",
        default_value = "/tmp",
        value_delimiter = ',',
        env = "SHMTRACE_HUB_DIR"
    )]
    hub_dirs: Vec<PathBuf>,
}

impl Kill {
    /// Ends the trees, removes the hubs.
    pub fn run(self) -> anyhow::Result<Exit> {
        let mut out = anstream::stdout().lock();
        let mut exit = Exit::Clean;
        let mut hubs = BTreeSet::new();
        let mut doomed = BTreeSet::new();
        if !(self.stale && self.trees.is_empty()) {
            let mut tree = Tree::gather(&self.trees.roots()?).map_err(refusal)?;
            doomed.extend(tree.members().map(|member| member.id.pid));
            hubs.extend(hubs_of(doomed.iter().copied()));
            exit = self.end(&mut tree, &mut out)?;
        }
        if self.stale {
            for folder in &self.hub_dirs {
                let found = stale_hubs(folder).with_context(|| {
                    format!("cannot look for hub files in {}", folder.display())
                })?;
                if found.is_empty() {
                    anstream::eprintln!("shmtrace: no hub file in {}", folder.display());
                }
                hubs.extend(found);
            }
        }
        for hub in &hubs {
            if !self.remove(hub, &doomed, &mut out)? {
                exit = Exit::Error;
            }
        }
        Ok(exit)
    }

    /// Ends one tree, or says what would be ended.
    fn end(&self, tree: &mut Tree, out: &mut impl Write) -> anyhow::Result<Exit> {
        if self.dry_run {
            for member in tree.in_order() {
                let indent = "  ".repeat(member.depth);
                writeln!(
                    out,
                    "would end {indent}{} [{}]",
                    printable(&member.name),
                    member.id.pid
                )?;
            }
            return Ok(Exit::Clean);
        }
        let mut lines = Vec::new();
        let ending = tree
            .end(Signal::TERM, self.timeout, |ended| {
                lines.push(ended.clone());
            })
            .map_err(refusal)?;
        for ended in &lines {
            let who = format!("{} [{}]", printable(&ended.name), ended.id.pid);
            writeln!(out, "ended {who}{}", after(ended))?;
        }
        for (id, name) in &ending.doubtful {
            anstream::eprintln!(
                "shmtrace: {} [{}] appeared while the tree ended and may be of it, but its parent was gone \
                 when it was seen; it was left alone: end it with `shmtrace kill --pid-tree {}`",
                printable(name),
                id.pid,
                id.pid
            );
        }
        for (id, name, state) in &ending.survivors {
            anstream::eprintln!(
                "shmtrace: {} [{}] has SIGKILL but is not gone (state {state}): it ends when its system call \
                 returns; see /proc/{}/stack",
                printable(name),
                id.pid,
                id.pid
            );
        }
        Ok(if ending.survivors.is_empty() {
            Exit::Clean
        } else {
            Exit::Error
        })
    }

    /// Removes one hub file, unless somebody but `doomed` uses it; false if that fails.
    fn remove(
        &self,
        hub: &HubFile,
        doomed: &BTreeSet<u32>,
        out: &mut impl Write,
    ) -> anyhow::Result<bool> {
        let name = printable(&hub.path.display().to_string());
        let size = format!("{} long, {} in use", bytes(hub.size), bytes(hub.occupied));
        let mut users = hub.users();
        users
            .seen
            .retain(|(pid, _)| !(self.dry_run && doomed.contains(pid)));
        if let Some(why) = users_in_words(&users) {
            writeln!(out, "kept {name}: {why}")?;
            return Ok(true);
        }
        if self.dry_run {
            writeln!(out, "would remove {name} ({size})")?;
            return Ok(true);
        }
        match hub.remove() {
            Ok(true) => writeln!(out, "removed {name} ({size})")?,
            Ok(false) => writeln!(out, "gone already: {name}")?,
            Err(error) => {
                anstream::eprintln!("shmtrace: cannot remove {name}: {error}");
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Who keeps a hub from being removed.
fn users_in_words(users: &Users) -> Option<String> {
    if !users.seen.is_empty() {
        let by: Vec<String> = users
            .seen
            .iter()
            .map(|(pid, name)| format!("{} [{pid}]", printable(name)))
            .collect();
        return Some(format!("in use by {}", by.join(", ")));
    }
    (users.hidden > 0).then(|| {
        format!(
            "{} processes could map it and may not be looked into: run `sudo shmtrace ...`",
            users.hidden
        )
    })
}

fn after(ended: &Ended) -> &'static str {
    match ended.after {
        Some(Signal::KILL) => " by SIGKILL",
        Some(_) => " after SIGTERM",
        None => " by itself",
    }
}

/// Which exit code an error has.
pub(crate) fn refusal(error: TeardownError) -> anyhow::Error {
    match error {
        TeardownError::Everything(_) | TeardownError::OwnAncestor(_) => {
            Refusal::usage(error.to_string()).into()
        }
        TeardownError::NotPermitted { .. } => Refusal::not_permitted(error.to_string()).into(),
        TeardownError::NoSuchProcess(_) | TeardownError::Io { .. } => error.into(),
    }
}

/// Bytes for people: `109.1 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn bytes_for_people() {
        assert_eq!(bytes(17), "17 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(4 << 30), "4.0 GiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
    }
}
