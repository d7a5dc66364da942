//! The block that one signal prints: frame, threads, sections.

use std::fmt::Write as _;
use std::process;

use crate::diagnostics::{self, Outcome, bounded};
use crate::threads;

pub(crate) fn print(name: &str) {
    let pid = process::id();
    say(&format!(
        "\n=== SIGUSR1: {name} (pid {pid}) ===\n{}",
        thread_section()
    ));
    diagnostics::for_each(say);
    say(&format!("=== End SIGUSR1: {name} (pid {pid}) ===\n"));
}

/// Names of functions come from debug information, whose reader takes locks: when it does not answer, addresses do.
fn thread_section() -> String {
    match bounded(|text| text.push_str(&threads::section(true))) {
        Outcome::Text(text) => text,
        Outcome::Panicked | Outcome::Late | Outcome::NoThread => {
            let mut text = threads::section(false);
            let _infallible = writeln!(text, "  (function names could not be had)");
            text
        }
    }
}

/// One write for each section, so that those of several processes do not mix; not through `eprint!`, whose lock a
/// hung thread may hold.
pub(crate) fn say(text: &str) {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        match rustix::io::write(rustix::stdio::stderr(), rest) {
            Ok(written) => rest = &rest[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}
