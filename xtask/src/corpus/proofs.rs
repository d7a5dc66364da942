//! What is shown without a kernel: the exhaustive model, and random interleavings of the engine's input.

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::{process, workspace};

/// How many random cases each property gets.
const CASES: u32 = 20_000;

/// What came out.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Proofs {
    pub(crate) model: Run,
    pub(crate) interleavings: Run,
    pub(crate) cases: u32,
    /// Each setup of the model: its rule, kept or broken, its states and disagreements, as the test prints them.
    pub(crate) setups: Vec<String>,
    pub(crate) states: u64,
}

/// One test program.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) command: String,
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Proofs {
    pub(crate) fn failures(&self) -> usize {
        usize::try_from(self.model.failed + self.interleavings.failed).unwrap_or(usize::MAX)
    }
}

pub(crate) fn run() -> Result<Proofs> {
    let (model, text) = test("model", &["--nocapture", "--test-threads", "1"], None)?;
    let setups: Vec<String> = text
        .lines()
        .filter_map(|line| line.find(" states, ").map(|_| line))
        // The harness leaves its own words at the beginning of a line.
        .map(|line| line.rsplit(" ... ").next().unwrap_or(line).to_owned())
        .collect();
    let states = setups.iter().filter_map(|line| states_of(line)).sum();
    let (interleavings, _) = test("interleavings", &[], Some(CASES))?;
    Ok(Proofs {
        model,
        interleavings,
        cases: CASES,
        setups,
        states,
    })
}

/// The number before ` states`.
fn states_of(line: &str) -> Option<u64> {
    let before = line.split(" states, ").next()?;
    before.rsplit(' ').next()?.parse().ok()
}

/// Runs a test program of the engine.
fn test(name: &str, options: &[&str], cases: Option<u32>) -> Result<(Run, String)> {
    let mut cargo = workspace::cargo("test");
    cargo.args([
        "--release",
        "--package",
        "shmtrace-engine",
        "--test",
        name,
        "--",
    ]);
    cargo.args(options);
    let mut command = process::show(&cargo);
    if let Some(cases) = cases {
        cargo.env("PROPTEST_CASES", cases.to_string());
        command = format!("PROPTEST_CASES={cases} {command}");
    }
    eprintln!("$ {command}");
    let output = cargo
        .output()
        .with_context(|| format!("cannot start `{command}`"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (passed, failed) = summary(&text).with_context(|| {
        let complaints = String::from_utf8_lossy(&output.stderr);
        format!("`{command}` says no result: {complaints}")
    })?;
    let command = command.replace(&*cargo.get_program().to_string_lossy(), "cargo");
    let run = Run {
        command,
        passed,
        failed,
    };
    Ok((run, text))
}

/// The counts of `test result: ok. 9 passed; 0 failed; ...`.
fn summary(text: &str) -> Option<(u64, u64)> {
    let line = text
        .lines()
        .rfind(|line| line.starts_with("test result: "))?;
    let count = |what: &str| {
        let before = line.split(what).next()?.trim_end();
        before.rsplit(' ').next()?.parse().ok()
    };
    Some((count("passed")?, count("failed")?))
}

#[cfg(test)]
mod tests {
    use super::{states_of, summary};

    #[test]
    fn counts_are_read_from_what_the_tests_print() {
        let said = "test a_thief ... Thief, 1 producing and 2 consuming threads: 3125 states, 12 of them stuck; 0 disagreements\n\
                    test result: ok. 9 passed; 1 failed; 0 ignored; finished in 3.1s\n";
        assert_eq!(summary(said), Some((9, 1)));
        assert_eq!(said.lines().next().and_then(states_of), Some(3125));
        assert_eq!(summary("nothing"), None);
    }
}
