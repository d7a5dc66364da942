//! `shmtrace completions`, `man` and `schema`: what belongs to an installation.

use std::{io::Write as _, path::PathBuf};

use anyhow::Context as _;
use clap::{Command, ValueEnum as _};
use clap_complete::Shell;
use roff::{Roff, bold, roman};

use super::guide::Guide;
use crate::{
    exit::{Exit, Refusal},
    output,
};

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
    #[arg(long, short, value_name = "DIR", env = "SHMTRACE_OUTPUT_DIR")]
    output_dir: Option<PathBuf>,
}

impl Man {
    /// Prints or writes the pages.
    pub fn run(self, mut command: Command) -> anyhow::Result<Exit> {
        command.build();
        if let Some(folder) = &self.output_dir {
            output::create_folder(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
            let pages = command.get_subcommands().filter(|sub| has_page(sub));
            for shown in pages.chain([&command]) {
                let file = folder.join(format!("{}.1", page_name(shown)));
                output::create(&file)
                    .and_then(|mut out| out.write_all(&page(&command, shown)?))
                    .with_context(|| format!("cannot write {}", file.display()))?;
            }
            return Ok(Exit::Clean);
        }
        let shown = match &self.command {
            None => &command,
            Some(name) => command
                .get_subcommands()
                .find(|sub| has_page(sub) && sub.get_name() == name)
                .ok_or_else(|| no_such_command(&command, name))?,
        };
        std::io::stdout()
            .lock()
            .write_all(&page(&command, shown)?)?;
        Ok(Exit::Clean)
    }
}

fn has_page(command: &Command) -> bool {
    command.get_name() != "help"
}

fn no_such_command(whole: &Command, name: &str) -> Refusal {
    let known: Vec<&str> = whole
        .get_subcommands()
        .filter(|sub| has_page(sub))
        .map(Command::get_name)
        .collect();
    Refusal::usage(format!(
        "there is no command {name:?}: there are {}",
        known.join(", ")
    ))
}

/// What the page is called: `shmtrace-run`.
fn page_name(command: &Command) -> String {
    command
        .get_display_name()
        .unwrap_or_else(|| command.get_name())
        .to_owned()
}

/// A page of the manual: what clap knows, then how it ends and what to type.
fn page(whole: &Command, shown: &Command) -> std::io::Result<Vec<u8>> {
    let program = whole.get_name();
    let is_whole = shown.get_name() == program;
    let man = clap_mangen::Man::new(shown.clone())
        .title(page_name(shown).to_uppercase())
        .source(format!("{program} {}", env!("CARGO_PKG_VERSION")))
        .manual("Finding lost wakeups");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if is_whole {
        man.render_subcommands_section(&mut text)?;
    }
    let mut roff = Roff::new();
    if let Some(guide) = Guide::of(if is_whole { "" } else { shown.get_name() }) {
        roff.control("SH", ["EXIT STATUS"]);
        for (code, meaning) in guide.exits {
            roff.control("TP", []);
            roff.text([bold(code.to_string())]);
            roff.text([roman(*meaning)]);
        }
        roff.control("SH", ["EXAMPLES"]);
        for (line, what) in guide.examples {
            roff.control("TP", []);
            roff.text([bold(*line)]);
            roff.text([roman(*what)]);
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    let others = whole
        .get_subcommands()
        .filter(|sub| has_page(sub) && sub.get_name() != shown.get_name())
        .map(page_name)
        .chain((!is_whole).then(|| program.to_owned()));
    let others: Vec<String> = others.map(|name| format!("{name}(1)")).collect();
    roff.text([roman(others.join(", "))]);
    roff.to_writer(&mut text)?;
    Ok(text)
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
