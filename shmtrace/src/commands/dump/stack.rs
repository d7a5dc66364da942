//! Where a sleeping thread is, in names.

use blazesym::{
    Pid,
    symbolize::{
        Input, Symbolized, Symbolizer,
        source::{Process as ProcessSource, Source},
    },
};
use shmtrace_engine::input::BlockedCall;

use crate::process::Process;

/// Frames that are shown; what is further out is the runtime's beginning.
const MAX_SHOWN: usize = 24;

/// Names addresses; remembers the files that it read.
#[derive(Debug)]
pub(super) struct Names {
    symbolizer: Symbolizer,
}

impl Names {
    pub(super) fn new() -> Self {
        Self {
            symbolizer: Symbolizer::new(),
        }
    }

    /// Lines for a thread's user stack, innermost frame first, with a remedy where there is none.
    pub(super) fn user_stack(&self, process: &Process, call: &BlockedCall) -> Vec<String> {
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
        let names = match self.symbolizer.symbolize(&source, Input::AbsAddr(&calls)) {
            Ok(names) => names,
            Err(error) => {
                tracing::warn!(
                    "frames of process {} have no names: {error}",
                    process.id().pid
                );
                Vec::new()
            }
        };
        let mut lines: Vec<String> = calls
            .iter()
            .enumerate()
            .take(MAX_SHOWN)
            .map(|(number, address)| format!("#{number} {}", name(names.get(number), *address)))
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

fn name(symbolized: Option<&Symbolized<'_>>, address: u64) -> String {
    let Some(Symbolized::Sym(symbol)) = symbolized else {
        return format!("{address:#x}");
    };
    let place = symbol.code_info.as_ref().map_or_else(String::new, |code| {
        let file = code.file.to_string_lossy();
        code.line
            .map_or_else(|| format!(" ({file})"), |line| format!(" ({file}:{line})"))
    });
    format!("{}{place}", symbol.name)
}
