//! `shmtrace completions`, `man` and `schema`: what belongs to an installation.

use std::{fs, io::Write as _, path::PathBuf};

use anyhow::Context as _;
use clap::{Command, ValueEnum as _};
use clap_complete::Shell;

use crate::exit::Exit;

/// The NDJSON format as a JSON Schema.
pub const SCHEMA: &str = include_str!("../../schema/ndjson-1.json");

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub struct Completions {
    /// Which shell; put the output where that shell looks, such as ~/.local/share/bash-completion/completions/shmtrace
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

impl Completions {
    /// Prints the script.
    pub fn run(self, mut command: Command) -> anyhow::Result<Exit> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "shmtrace", &mut script);
        std::io::stdout().lock().write_all(&script)?;
        Ok(Exit::Clean)
    }
}

/// Arguments of `man`.
#[derive(Debug, clap::Args)]
pub struct Man {
    /// The page of this command instead of the program's own
    #[arg(value_name = "COMMAND", conflicts_with = "output_dir")]
    command: Option<String>,

    /// Write all pages into this folder instead
    #[arg(long, short, value_name = "DIR")]
    output_dir: Option<PathBuf>,
}

impl Man {
    /// Prints or writes the pages.
    pub fn run(self, mut command: Command) -> anyhow::Result<Exit> {
        command.build();
        if let Some(folder) = &self.output_dir {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
            clap_mangen::generate_to(command, folder)
                .with_context(|| format!("cannot write man pages to {}", folder.display()))?;
            return Ok(Exit::Clean);
        }
        let shown = match &self.command {
            None => &command,
            Some(name) => command.find_subcommand(name).with_context(|| {
                format!(
                    "there is no command {name:?}: see `shmtrace --help` for those that there are"
                )
            })?,
        };
        let mut page = Vec::new();
        clap_mangen::Man::new(shown.clone()).render(&mut page)?;
        std::io::stdout().lock().write_all(&page)?;
        Ok(Exit::Clean)
    }
}

/// Arguments of `schema`.
#[derive(Debug, clap::Args)]
pub struct Schema {}

impl Schema {
    /// Prints the schema.
    pub fn run(self) -> anyhow::Result<Exit> {
        std::io::stdout().lock().write_all(SCHEMA.as_bytes())?;
        Ok(Exit::Clean)
    }
}

/// Names of the shells, for messages and tests.
pub fn shells() -> Vec<String> {
    Shell::value_variants()
        .iter()
        .map(ToString::to_string)
        .collect()
}
