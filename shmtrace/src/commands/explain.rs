//! `shmtrace explain`: what a finding means. The pages are those of `docs/findings.md`.

use std::io::Write as _;

use owo_colors::OwoColorize as _;
use shmtrace_engine::State;
#[cfg(test)]
use shmtrace_engine::{Cause, Code};

use crate::exit::{Exit, Refusal};

/// One page for each class (`## `) and each cause (`### `).
const PAGES: &str = include_str!("../../../docs/findings.md");

/// In the order in which a finding goes through them.
const STATES: [State; 6] = [
    State::Suspect,
    State::Missed,
    State::Masked,
    State::Recovered,
    State::Ended,
    State::Inconclusive,
];

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
pub struct Explain {
    /// A class such as missed-wakeup, a cause such as stolen, or a state such as masked; without one, all classes and causes
    #[arg(value_name = "CODE")]
    code: Option<String>,
}

/// A page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Page<'a> {
    name: &'a str,
    is_cause: bool,
    text: &'a str,
}

impl Explain {
    /// Prints the page.
    pub fn run(self) -> anyhow::Result<Exit> {
        let mut out = anstream::stdout().lock();
        let Some(code) = self.code else {
            for page in pages() {
                let indent = if page.is_cause { ". " } else { "" };
                writeln!(
                    out,
                    "{:<24} {}",
                    format!("{indent}{}", page.name),
                    page.summary()
                )?;
            }
            return Ok(Exit::Clean);
        };
        if is_state(&code) {
            writeln!(out, "{}", introduction())?;
            return Ok(Exit::Clean);
        }
        let page = find(&code).ok_or_else(|| {
            let known: Vec<&str> = pages().map(|page| page.name).collect();
            Refusal::usage(format!(
                "there is no finding {code:?}: there are {}",
                known.join(", ")
            ))
        })?;
        let kind = if page.is_cause {
            " (a cause of missed-wakeup)"
        } else {
            ""
        };
        writeln!(out, "{}{kind}\n\n{}", page.name.bold(), page.text)?;
        Ok(Exit::Clean)
    }
}

impl Page<'_> {
    /// Its first paragraph.
    fn summary(&self) -> String {
        let end = self.text.find("\n\n").unwrap_or(self.text.len());
        self.text[..end].replace('\n', " ")
    }
}

/// Whether somebody asks for a state, such as the `masked` of `--fail-on`: the introduction tells of them all.
fn is_state(name: &str) -> bool {
    let name = plain(name);
    STATES.into_iter().any(|state| state.as_str() == name)
}

/// What stands before the pages, without the title and the origin of the file.
fn introduction() -> &'static str {
    let end = PAGES.find("\n## ").unwrap_or(PAGES.len());
    let start = PAGES.find("\nA finding is").unwrap_or(0);
    PAGES.get(start..end).unwrap_or_default().trim()
}

fn plain(name: &str) -> String {
    name.trim().to_ascii_lowercase().replace('_', "-")
}

fn find(name: &str) -> Option<Page<'static>> {
    let name = plain(name);
    pages().find(|page| page.name == name)
}

/// All pages, in order.
fn pages() -> impl Iterator<Item = Page<'static>> {
    // What stands before the first heading is the introduction.
    PAGES.split("\n## ").skip(1).flat_map(|section| {
        section
            .split("\n### ")
            .enumerate()
            .filter_map(|(number, page)| {
                let (name, text) = page.split_once('\n')?;
                Some(Page {
                    name: name.trim(),
                    is_cause: number > 0,
                    text: text.trim(),
                })
            })
    })
}

/// Whether a name is that of a class or of a cause.
#[cfg(test)]
fn is_known(page: Page<'_>) -> bool {
    if page.is_cause {
        Cause::ALL
            .into_iter()
            .any(|cause| cause.as_str() == page.name)
    } else {
        Code::ALL.into_iter().any(|code| code.as_str() == page.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_and_each_cause_has_one_page_and_nothing_else_has() {
        let codes = Code::ALL.into_iter().map(Code::as_str);
        let causes = Cause::ALL.into_iter().map(Cause::as_str);
        let mut wanted: Vec<&str> = codes.chain(causes).collect();
        let mut there: Vec<&str> = pages().map(|page| page.name).collect();
        wanted.sort_unstable();
        there.sort_unstable();
        assert_eq!(there, wanted);
        assert!(
            pages().all(is_known),
            "a cause is a ### page, a class a ## page"
        );
    }

    #[test]
    fn pages_say_how_it_is_proven_and_what_to_look_at() {
        for page in pages() {
            assert!(
                page.summary().ends_with('.') && page.summary().len() < 120,
                "{}",
                page.name
            );
            assert!(page.text.len() > 200, "{}", page.name);
        }
        assert!(
            pages()
                .filter(|page| !page.is_cause)
                .all(|page| page.text.contains("Proven"))
        );
    }

    #[test]
    fn each_state_is_told_of_in_the_introduction() {
        for state in STATES {
            assert!(is_state(state.as_str()));
            let name = format!("`{}`", state.as_str());
            assert!(introduction().contains(&name), "{name}");
        }
        assert!(introduction().starts_with("A finding is a proof"));
        assert!(!introduction().contains("\n#"));
    }

    #[test]
    fn a_page_is_found_however_it_is_written() {
        assert_eq!(find("Missed_Wakeup").unwrap().name, "missed-wakeup");
        assert!(find("stolen").unwrap().is_cause);
        assert_eq!(find("missed"), None);
    }
}
