//! Threads of a process: state, the system call they block in, and how often they ran.

use std::{io, os::fd::AsFd as _};

use rustix::fs::{Dir, OFlags};
use shmtrace_engine::{
    Tid,
    input::{BlockedCall, ProcessObservation, ThreadObservation, WaitsFor},
};

use super::{Doorbells, Process, parse_stat, read_into, stat::status_field, waits};

/// Threads of one process that are looked at. A process with more is reported as not fully seen.
pub const MAX_THREADS: usize = 4_096;

impl Process {
    /// The ids of its threads, in order.
    pub fn tids(&self) -> io::Result<Vec<Tid>> {
        let task = self.open_at("task", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut tids: Vec<Tid> = Dir::read_from(&task)?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok().map(Tid))
            .take(MAX_THREADS)
            .collect();
        tids.sort_unstable();
        Ok(tids)
    }

    /// Looks at every thread; `doorbells` says what a sleep is compared with. Finish with
    /// [`see_whether_they_ran`](Self::see_whether_they_ran).
    pub fn observe_threads(&self, doorbells: &Doorbells<'_>) -> ProcessObservation {
        let mut observation = ProcessObservation {
            proc: Some(self.id()),
            alive: self.is_alive(),
            threads: Vec::new(),
        };
        let mut buffer = Vec::with_capacity(4096);
        for tid in self.tids().unwrap_or_default() {
            observation
                .threads
                .extend(self.observe_thread(tid, doorbells, &mut buffer));
        }
        observation
    }

    /// The second look at the run counts: marks the threads that ran since the first, and those that ended.
    pub fn see_whether_they_ran(&self, observation: &mut ProcessObservation) {
        let mut buffer = Vec::with_capacity(256);
        for thread in &mut observation.threads {
            thread.ran_meanwhile = thread.runs != self.runs(thread.tid, &mut buffer);
        }
        observation.alive = self.is_alive();
    }

    /// How often a thread was put on a CPU; `None` if the kernel does not count or the thread is gone.
    pub fn runs(&self, tid: Tid, buffer: &mut Vec<u8>) -> Option<u64> {
        self.read_task(tid, "schedstat", buffer)?;
        std::str::from_utf8(buffer)
            .ok()?
            .split_ascii_whitespace()
            .nth(2)?
            .parse()
            .ok()
    }

    /// State and name of one thread.
    pub(crate) fn thread_state(&self, tid: Tid, buffer: &mut Vec<u8>) -> Option<super::Stat> {
        self.read_task(tid, "stat", buffer)?;
        parse_stat(buffer)
    }

    /// One thread; `None` if it is gone. The run count is read first, so that whatever follows is covered by it.
    fn observe_thread(
        &self,
        tid: Tid,
        doorbells: &Doorbells<'_>,
        buffer: &mut Vec<u8>,
    ) -> Option<ThreadObservation> {
        let runs = self.runs(tid, buffer);
        let stat = self.thread_state(tid, buffer)?;
        let mut thread = ThreadObservation {
            tid,
            name: stat.comm,
            state: stat.state,
            syscall: None,
            wchan: None,
            runs,
            sleeps: self.sleeps(tid, buffer),
            ran_meanwhile: false,
            waits_for: WaitsFor::Nothing,
        };
        if thread.state == 'R' {
            return Some(thread);
        }
        thread.wchan = self.wait_channel(tid, buffer);
        if self.read_task(tid, "syscall", buffer).is_some() {
            thread.syscall = parse_syscall(buffer);
        }
        if let Some(call) = &mut thread.syscall {
            call.number = waits::restarted(call.number, thread.wchan.as_deref());
            if thread.state == 'S' {
                thread.waits_for = waits::waits_for(self, tid, call, doorbells, buffer);
            }
        }
        Some(thread)
    }

    fn sleeps(&self, tid: Tid, buffer: &mut Vec<u8>) -> Option<u64> {
        self.read_task(tid, "status", buffer)?;
        std::str::from_utf8(status_field(buffer, b"voluntary_ctxt_switches:")?)
            .ok()?
            .parse()
            .ok()
    }

    /// `wchan` is "0" for a running thread and without the right to see it.
    fn wait_channel(&self, tid: Tid, buffer: &mut Vec<u8>) -> Option<String> {
        self.read_task(tid, "wchan", buffer)?;
        let name = std::str::from_utf8(buffer).ok()?;
        (name != "0" && !name.is_empty()).then(|| name.to_owned())
    }

    fn read_task(&self, tid: Tid, file: &str, buffer: &mut Vec<u8>) -> Option<()> {
        read_into(
            self.dir().as_fd(),
            &format!("task/{}/{file}", tid.0),
            buffer,
        )
        .ok()
    }
}

/// Parses `/proc/PID/task/TID/syscall`: `running`, `-1 sp pc` (blocked outside of a call), or number, six arguments,
/// stack pointer and instruction pointer.
pub fn parse_syscall(bytes: &[u8]) -> Option<BlockedCall> {
    let mut words = std::str::from_utf8(bytes).ok()?.split_ascii_whitespace();
    let number = words.next()?.parse().ok()?;
    let mut hexadecimal = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    let mut args = [0; 6];
    for argument in &mut args {
        *argument = hexadecimal()?;
    }
    Some(BlockedCall {
        number,
        args,
        sp: hexadecimal()?,
        pc: hexadecimal()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_calls_are_parsed() {
        let call =
            parse_syscall(b"232 0x3 0x7ff1 0x400 0xffffffffffffffff 0x0 0x8 0x7ffc 0x7f12\n");
        let call = call.unwrap();
        assert_eq!(
            (call.number, call.args[3], call.pc),
            (232, u64::MAX, 0x7f12)
        );
        for none in [
            &b"running\n"[..],
            b"-1 0x7ff 0x7f\n",
            b"232 0x3",
            b"",
            b"70000 0x1 0x1",
        ] {
            assert_eq!(parse_syscall(none), None);
        }
    }

    #[test]
    fn a_sleeping_thread_is_seen_asleep_and_did_not_run() {
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let (started, start) = std::sync::mpsc::channel();
        let sleeper = std::thread::Builder::new()
            .name("sleeper".into())
            .spawn(move || {
                started.send(()).unwrap();
                let _closed = gate.recv();
            })
            .unwrap();
        start.recv().unwrap();
        let process = Process::open(std::process::id()).unwrap();
        let seen = loop {
            let mut seen = process.observe_threads(&Doorbells::default());
            process.see_whether_they_ran(&mut seen);
            let thread = seen
                .threads
                .into_iter()
                .find(|thread| thread.name == "sleeper")
                .unwrap();
            if thread.state == 'S' && !thread.ran_meanwhile {
                break thread;
            }
        };
        assert_eq!(seen.waits_for, WaitsFor::Futex);
        assert!(seen.runs.is_some_and(|runs| runs > 0));
        assert!(seen.sleeps.is_some());
        drop(release);
        sleeper.join().unwrap();
    }
}
