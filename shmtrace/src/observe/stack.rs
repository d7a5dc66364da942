//! Where a sleeping thread is, in names.

use blazesym::{
    Pid,
    symbolize::{
        Input, Symbolized, Symbolizer,
        source::{Process as ProcessSource, Source},
    },
};
use shmtrace_engine::input::{BlockedCall, Stack, ThreadObservation};

use crate::{process::Process, profile::Modules};

/// Frames that are shown; what is further out is the runtime's beginning.
const MAX_SHOWN: usize = 24;

/// Names addresses; remembers the files that it read.
#[derive(Debug)]
pub(crate) struct Names {
    symbolizer: Symbolizer,
}

impl Default for Names {
    fn default() -> Self {
        Self::new()
    }
}

impl Names {
    /// Both stacks of a thread, with the reason in place of one that is not there.
    pub(crate) fn stack(&self, process: &Process, thread: &ThreadObservation) -> Stack {
        let user = match &thread.syscall {
            Some(call) => self.user_stack(process, call),
            None => vec!["not looked at: it was not asleep in a system call".to_owned()],
        };
        let kernel = process
            .kernel_stack(thread.tid)
            .filter(|frames| !frames.is_empty())
            .unwrap_or_else(|| vec!["not shown by the kernel".to_owned()]);
        Stack { kernel, user }
    }

    pub(crate) fn new() -> Self {
        Self {
            symbolizer: Symbolizer::new(),
        }
    }

    /// Lines for a thread's user stack, innermost frame first, with a remedy where there is none.
    pub(crate) fn user_stack(&self, process: &Process, call: &BlockedCall) -> Vec<String> {
        let stack = match process.user_stack(call) {
            Ok(stack) => stack,
            Err(error) => return vec![format!("user stack not to be read: {error}")],
        };
        // All but the innermost are return addresses: the call is before.
        let calls: Vec<u64> = stack
            .iter()
            .enumerate()
            .map(|(number, address)| {
                if number == 0 {
                    *address
                } else {
                    address.saturating_sub(1)
                }
            })
            .collect();
        let mut source = ProcessSource::new(Pid::from(process.id().pid));
        // A file in /tmp that anybody can write.
        source.perf_map = false;
        // Names by ELF symbols: reading a whole program's debug information takes seconds.
        source.debug_syms = false;
        let source = Source::Process(source);
        // Names are read from the files in which the code lies.
        let names = if process.code_may_block(&calls) {
            Vec::new()
        } else {
            let names = self.symbolizer.symbolize(&source, Input::AbsAddr(&calls));
            names.unwrap_or_else(|error| {
                tracing::warn!(
                    "frames of process {} have no names: {error}",
                    process.id().pid
                );
                Vec::new()
            })
        };
        let mut modules = None;
        let mut place_of = |address| {
            let modules = modules.get_or_insert_with(|| {
                let mut modules = Modules::default();
                modules.refresh([process.id().pid]);
                modules
            });
            place(modules, process.id().pid, address)
        };
        let mut lines: Vec<String> = calls
            .iter()
            .enumerate()
            .take(MAX_SHOWN)
            .map(|(number, address)| {
                let name = name(names.get(number))
                    .or_else(|| place_of(*address))
                    .unwrap_or_else(|| format!("{address:#x}"));
                format!("#{number} {name}")
            })
            .collect();
        if calls.len() > MAX_SHOWN {
            lines.push(format!("... and {} frames more", calls.len() - MAX_SHOWN));
        }
        if calls.len() == 1 {
            lines.push(
                "callers not known (no frame pointers: build with -C force-frame-pointers=yes)"
                    .into(),
            );
        }
        lines
    }
}

fn name(symbolized: Option<&Symbolized<'_>>) -> Option<String> {
    let Some(Symbolized::Sym(symbol)) = symbolized else {
        return None;
    };
    let place = symbol.code_info.as_ref().map_or_else(String::new, |code| {
        let file = code.file.to_string_lossy();
        code.line
            .map_or_else(|| format!(" ({file})"), |line| format!(" ({file}:{line})"))
    });
    Some(format!("{}{place}", symbol.name))
}

/// File and offset of what has no name: enough for `addr2line`.
fn place(modules: &Modules, pid: u32, address: u64) -> Option<String> {
    let spot = modules.find(pid, address)?;
    let file = spot.path.rsplit('/').next().unwrap_or_default();
    Some(format!(
        "{}+{:#x}",
        file.trim_matches(['[', ']']),
        spot.offset
    ))
}
