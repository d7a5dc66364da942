//! Threads that slept before the sampling began and never woke: no switch of theirs is ever seen. Where a build hangs,
//! that is most of them, so they are looked at from outside: innermost address and system call are what there is.

use shmtrace_common::profile::{NO_STACK, Place};
use shmtrace_engine::Tid;

use crate::{
    process::{Doorbells, Process},
    profile::{Modules, Namer},
    report::syscall_name,
};

/// Run counts of all threads when the sampling began.
pub(super) struct Sleepers {
    threads: Vec<(u32, Tid, Option<u64>)>,
}

impl Sleepers {
    /// Notes the threads of these processes.
    pub(super) fn note(pids: &[u32]) -> Self {
        let mut buffer = Vec::new();
        let mut threads = Vec::new();
        for &pid in pids {
            let Ok(process) = Process::open(pid) else {
                continue;
            };
            for tid in process.tids().unwrap_or_default() {
                threads.push((pid, tid, process.runs(tid, &mut buffer)));
            }
        }
        Self { threads }
    }

    /// Those that have not run since, but for the ones of `seen`, with their frames, and whether these are a usable stack.
    pub(super) fn still_asleep(
        &self,
        seen: &[u32],
        modules: &Modules,
        namer: &mut Namer,
    ) -> Vec<(Place, Vec<String>, bool)> {
        let mut asleep = Vec::new();
        let mut pids: Vec<u32> = self.threads.iter().map(|(pid, ..)| *pid).collect();
        pids.dedup();
        for pid in pids {
            let Ok(process) = Process::open(pid) else {
                continue;
            };
            for thread in process.observe_threads(&Doorbells::default()).threads {
                let before = self
                    .threads
                    .iter()
                    .find(|(of, tid, _)| (*of, *tid) == (pid, thread.tid));
                let slept =
                    before.is_some_and(|(_, _, runs)| runs.is_some() && *runs == thread.runs);
                if !slept || seen.contains(&thread.tid.0) {
                    continue;
                }
                let mut comm = [0; 16];
                for (to, from) in comm.iter_mut().zip(thread.name.bytes().take(15)) {
                    *to = from;
                }
                let mut frames = vec!["[asleep all the time]".to_owned()];
                let mut usable = false;
                if let Some(call) = thread.syscall {
                    let stack = process.user_stack(&call).unwrap_or_else(|_| vec![call.pc]);
                    let (named, whole) = namer.user(modules, pid, &stack);
                    usable = whole;
                    frames.extend(named);
                    frames.push(format!("{}_[k]", syscall_name(call.number)));
                }
                asleep.push((
                    Place {
                        pid,
                        user: NO_STACK,
                        kernel: NO_STACK,
                        pad: 0,
                        comm,
                    },
                    frames,
                    usable,
                ));
            }
        }
        asleep
    }
}
