//! Registered sections, each run where it can hang without harm.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// How long a diagnostic may take before the block goes on without it.
pub const PATIENCE: Duration = Duration::from_secs(1);

type Section = Arc<dyn Fn(&mut String) + Send + Sync>;

struct Diagnostic {
    section: Section,
    /// A run of it has not returned yet.
    running: Arc<AtomicBool>,
}

static DIAGNOSTICS: Mutex<Vec<Diagnostic>> = Mutex::new(Vec::new());

pub(crate) fn register(f: impl Fn(&mut String) + Send + Sync + 'static) {
    DIAGNOSTICS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(Diagnostic {
            section: Arc::new(f),
            running: Arc::new(AtomicBool::new(false)),
        });
}

/// Runs all of them in the order of registration and hands on what each has to say.
pub(crate) fn for_each(say: fn(&str)) {
    let all: Vec<_> = DIAGNOSTICS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
        .map(|diagnostic| (diagnostic.section.clone(), diagnostic.running.clone()))
        .collect();
    for (number, (section, running)) in all.into_iter().enumerate() {
        // AcqRel: pairs with the Release store at the end of the earlier run, so two runs never overlap.
        if running.swap(true, Ordering::AcqRel) {
            say(&format!(
                "(diagnostic {number} has not returned from an earlier signal: it waits for something that is held)\n"
            ));
            continue;
        }
        let done = Done(running);
        let outcome = bounded(move |text| {
            let _done = done;
            section(text);
        });
        match outcome {
            Outcome::Text(text) => say(&text),
            Outcome::Late => say(&format!(
                "(diagnostic {number} did not answer within {} ms: it waits for something that is held)\n",
                PATIENCE.as_millis()
            )),
            Outcome::Panicked => say(&format!("(diagnostic {number} panicked)\n")),
            Outcome::NoThread => {
                say(&format!(
                    "(no thread could be started for diagnostic {number})\n"
                ));
            }
        }
    }
}

/// Clears the flag however the run ends, also when it was never started.
struct Done(Arc<AtomicBool>);

impl Drop for Done {
    fn drop(&mut self) {
        // Release: pairs with the swap in `for_each`.
        self.0.store(false, Ordering::Release);
    }
}

/// What came of a bounded run.
pub(crate) enum Outcome {
    Text(String),
    Late,
    Panicked,
    NoThread,
}

/// Runs `f` on a thread of its own, for at most [`PATIENCE`]; later its text is dropped.
pub(crate) fn bounded(f: impl FnOnce(&mut String) + Send + 'static) -> Outcome {
    let (sender, receiver) = channel();
    let started = thread::Builder::new()
        .name("sigusr1-section".into())
        .spawn(move || {
            let text = catch_unwind(AssertUnwindSafe(|| {
                let mut text = String::new();
                f(&mut text);
                text
            }));
            // Nobody listens any more when we are late.
            let _late = sender.send(text.ok());
        });
    if started.is_err() {
        return Outcome::NoThread;
    }
    match receiver.recv_timeout(PATIENCE) {
        Ok(Some(text)) => Outcome::Text(text),
        Ok(None) | Err(RecvTimeoutError::Disconnected) => Outcome::Panicked,
        Err(RecvTimeoutError::Timeout) => Outcome::Late,
    }
}
