//! `shmtrace watch`: trace trees live.

use crate::exit::Exit;

/// Arguments of `watch`.
#[derive(Debug, clap::Args)]
pub struct Watch {
    #[command(flatten)]
    trees: crate::cli::PidTree,
}

impl Watch {
    /// Traces until it is told to stop.
    pub fn run(self) -> anyhow::Result<Exit> {
        anyhow::bail!("not wired up yet ({:?})", self.trees.pids())
    }
}
