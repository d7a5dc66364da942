//! `cargo xtask mutants`: each rule of the engine is broken on purpose in a copy, and some test must fail.
//!
//! The rules are in `shmtrace-engine/mutants.txt`. One whose expression changes nothing, that does not compile, or that no
//! test notices, is an error: the table must follow the code.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::{corpus, workspace};

/// The tests, the quickest first: the first that fails settles it.
const STAGES: [&[&str]; 3] = [
    &[
        "--lib", "--test", "proofs", "--test", "looks", "--test", "causes", "--test", "classes",
    ],
    &["--test", "healthy", "--test", "interleavings"],
    &["--test", "model"],
];

#[derive(Args)]
pub(crate) struct Task {
    /// Only rules with this in their names; what is known of the others stays
    pattern: Option<String>,
    /// Random cases for each property
    #[arg(long, default_value_t = 1000)]
    cases: u32,
}

/// What breaking each rule came to.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Mutants {
    pub(crate) all: Vec<Mutant>,
}

/// A rule, broken.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Mutant {
    pub(crate) name: String,
    pub(crate) file: String,
    pub(crate) outcome: Outcome,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// A test failed.
    Noticed(String),
    /// All tests passed.
    Survives,
    /// The expression matches nothing.
    Unchanged,
    /// The broken code is no code.
    DoesNotCompile(String),
}

impl Mutants {
    /// Takes over what another run has for rules of the table that this one left out.
    fn complete(&mut self, before: Self, table: &str) -> Result<()> {
        let mut all: BTreeMap<String, Mutant> = before
            .all
            .into_iter()
            .chain(std::mem::take(&mut self.all))
            .map(|mutant| (mutant.name.clone(), mutant))
            .collect();
        self.all = rules(table)?
            .iter()
            .filter_map(|rule| all.remove(&rule.title()))
            .collect();
        Ok(())
    }
}

impl Mutant {
    pub(crate) fn noticed(&self) -> bool {
        matches!(self.outcome, Outcome::Noticed(_))
    }

    pub(crate) fn shown(&self) -> String {
        match &self.outcome {
            Outcome::Noticed(test) => format!("`{test}`"),
            Outcome::Survives => "**nothing**".to_owned(),
            Outcome::Unchanged => "**its expression matches nothing**".to_owned(),
            Outcome::DoesNotCompile(why) => format!("**does not compile**: {why}"),
        }
    }
}

/// A line of the table.
#[derive(Debug, PartialEq, Eq)]
struct Rule<'a> {
    name: &'a str,
    file: &'a str,
    expression: &'a str,
}

impl Rule<'_> {
    fn title(&self) -> String {
        self.name.replace('-', " ")
    }
}

impl Task {
    pub(crate) fn run(&self) -> Result<()> {
        let engine = workspace::root().join("shmtrace-engine");
        let table = fs::read_to_string(engine.join("mutants.txt"))
            .context("cannot read shmtrace-engine/mutants.txt")?;
        let copy = Copy::make(&engine, self.cases)?;
        if let Some(test) = copy.failing()? {
            bail!("{test} fails with every rule intact");
        }
        let mut mutants = Mutants::default();
        for rule in rules(&table)? {
            if !self
                .pattern
                .as_deref()
                .is_none_or(|part| rule.name.contains(part))
            {
                continue;
            }
            let mutant = Mutant {
                name: rule.title(),
                file: rule.file.to_owned(),
                outcome: copy.broken(&rule)?,
            };
            eprintln!("{:44} {}", mutant.name, mutant.shown());
            mutants.all.push(mutant);
        }
        if self.pattern.is_some() {
            mutants.complete(corpus::kept("mutants")?.unwrap_or_default(), &table)?;
        }
        corpus::keep("mutants", &mutants)?;
        let silent = mutants
            .all
            .iter()
            .filter(|mutant| !mutant.noticed())
            .count();
        println!(
            "{} rules broken, {silent} of them unnoticed",
            mutants.all.len()
        );
        if silent > 0 {
            bail!("{silent} rules can be broken without a test that fails");
        }
        Ok(())
    }
}

fn rules(table: &str) -> Result<Vec<Rule<'_>>> {
    let lines = table
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, rest) = line
                .split_once(' ')
                .with_context(|| format!("no rule: {line}"))?;
            let (file, expression) = rest
                .trim_start()
                .split_once(' ')
                .with_context(|| format!("no rule: {line}"))?;
            Ok(Rule {
                name,
                file,
                expression: expression.trim_start(),
            })
        })
        .collect()
}

/// A copy of the engine that may be broken.
struct Copy {
    folder: PathBuf,
    whole: PathBuf,
    cases: u32,
}

impl Copy {
    fn make(engine: &Path, cases: u32) -> Result<Self> {
        let folder = workspace::built("mutants");
        let copy = Self {
            whole: engine.join("src"),
            cases,
            folder,
        };
        // What an earlier run left behind is of no use, its compiled dependencies apart.
        let _ = fs::remove_dir_all(copy.folder.join("engine"));
        fs::create_dir_all(copy.folder.join("engine"))?;
        for part in ["Cargo.toml", "src", "tests"] {
            copy_all(&engine.join(part), &copy.folder.join("engine").join(part))?;
        }
        let root = workspace::root();
        fs::copy(root.join("Cargo.lock"), copy.folder.join("Cargo.lock"))?;
        fs::write(
            copy.folder.join("Cargo.toml"),
            alone(&fs::read_to_string(root.join("Cargo.toml"))?),
        )?;
        Ok(copy)
    }

    fn broken(&self, rule: &Rule<'_>) -> Result<Outcome> {
        let (whole, file) = (
            self.whole.join(rule.file),
            self.folder.join("engine/src").join(rule.file),
        );
        let before =
            fs::read(&whole).with_context(|| format!("cannot read {}", whole.display()))?;
        let sed = Command::new("sed")
            .args(["-E", rule.expression])
            .arg(&whole)
            .output()
            .context("cannot start sed")?;
        if !sed.status.success() {
            bail!(
                "{}: {}",
                rule.name,
                String::from_utf8_lossy(&sed.stderr).trim()
            );
        }
        if sed.stdout == before {
            return Ok(Outcome::Unchanged);
        }
        fs::write(&file, &sed.stdout)?;
        let outcome = self.outcome();
        fs::write(&file, before)?;
        outcome
    }

    fn outcome(&self) -> Result<Outcome> {
        let check = self.cargo(&["check", "--quiet", "--lib"]).output()?;
        if !check.status.success() {
            let said = String::from_utf8_lossy(&check.stderr);
            let error = said.lines().find(|line| line.starts_with("error"));
            return Ok(Outcome::DoesNotCompile(
                error.unwrap_or_default().to_owned(),
            ));
        }
        Ok(self.failing()?.map_or(Outcome::Survives, Outcome::Noticed))
    }

    /// The first test that fails.
    fn failing(&self) -> Result<Option<String>> {
        for stage in STAGES {
            let mut words = vec!["test", "--quiet"];
            words.extend(stage);
            let output = self.cargo(&words).output()?;
            if output.status.success() {
                continue;
            }
            let said = String::from_utf8_lossy(&output.stdout);
            let name = said
                .lines()
                .filter_map(|line| line.strip_prefix("    "))
                .find(|name| is_name(name));
            let complaints = String::from_utf8_lossy(&output.stderr);
            if name.is_none() && complaints.contains("could not compile") {
                bail!("the tests do not compile: {complaints}");
            }
            return Ok(Some(name.unwrap_or("a test").to_owned()));
        }
        Ok(None)
    }

    fn cargo(&self, words: &[&str]) -> Command {
        let mut cargo = workspace::cargo(words[0]);
        cargo
            .args(&words[1..])
            .current_dir(&self.folder)
            .env("CARGO_TARGET_DIR", self.folder.join("target"))
            .env("CARGO_INCREMENTAL", "1")
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_PROFILE_TEST_DEBUG", "0")
            .env("PROPTEST_CASES", self.cases.to_string())
            // The broken code may well be code that nothing uses.
            .env("RUSTFLAGS", "--cap-lints=allow");
        cargo
    }
}

/// Whether this may be the name of a test.
fn is_name(word: &str) -> bool {
    let part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == ':';
    word.contains('_') && word.chars().all(part)
}

/// The workspace's manifest with the engine as its only member.
fn alone(manifest: &str) -> String {
    let mut text = String::new();
    let mut members = false;
    for line in manifest.lines() {
        if line.starts_with("members") {
            text += "members = [\"engine\"]\n";
            members = !line.contains(']');
        } else if members {
            members = !line.starts_with(']');
        } else if !line.starts_with("exclude")
            && !line.contains("path = ")
            && !line.starts_with("default-members")
        {
            text += line;
            text.push('\n');
        }
    }
    text
}

fn copy_all(from: &Path, to: &Path) -> Result<()> {
    if from.is_file() {
        fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy_all(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Rule, alone, rules};

    #[test]
    fn a_rule_is_a_name_a_file_and_an_expression_with_spaces() {
        let table = "# comment\n\nno-grace   engine/looks.rs  s/a b/c  d/\n";
        let expected = Rule {
            name: "no-grace",
            file: "engine/looks.rs",
            expression: "s/a b/c  d/",
        };
        assert_eq!(rules(table).expect("it is one"), [expected]);
        assert!(rules("only-a-name\n").is_err());
    }

    #[test]
    fn the_copy_is_a_workspace_of_the_engine_alone() {
        let manifest = "[workspace]\nmembers = [\n  \"a\",\n]\nexclude = [\"b\"]\n[workspace.dependencies]\na = { path = \"a\" }\nanyhow = \"1\"\n";
        assert_eq!(
            alone(manifest),
            "[workspace]\nmembers = [\"engine\"]\n[workspace.dependencies]\nanyhow = \"1\"\n"
        );
    }
}
