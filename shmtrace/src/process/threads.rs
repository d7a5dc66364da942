//! Threads of a process: state, the system call they block in, and how often they ran.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use rustix::fs::{Dir, OFlags};
use shmtrace_engine::{
    Tid,
    input::{BlockedCall, ProcessObservation, ThreadObservation, WaitsFor},
};

use super::{Doorbells, Process, parse_stat, read_once, stat::status_field, waits};
use crate::rights;

/// Threads of one process that are looked at. The rest of a process with more counts as running, since it may.
pub const MAX_THREADS: usize = 4_096;

/// What stands for threads that were not looked at.
const REST: Tid = Tid(0);

/// Threads that were not looked at: nobody can say that they sleep.
fn the_rest() -> ThreadObservation {
    ThreadObservation {
        tid: REST,
        name: format!("(those after the first {MAX_THREADS})"),
        state: 'R',
        syscall: None,
        wchan: None,
        runs: None,
        sleeps: None,
        cpu_ns: None,
        ran_meanwhile: true,
        // Any of them may serve a lane.
        waits_for: WaitsFor::SomeFds,
        stack: None,
    }
}

impl Process {
    /// The ids of its threads, in order: of [`MAX_THREADS`] at most.
    pub fn tids(&self) -> io::Result<Vec<Tid>> {
        Ok(self.tids_and_rest()?.0)
    }

    /// The same, and whether there are more.
    fn tids_and_rest(&self) -> io::Result<(Vec<Tid>, bool)> {
        let task = self.open_at("task", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut all = Dir::read_from(&task)?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok().map(Tid));
        let mut tids: Vec<Tid> = all.by_ref().take(MAX_THREADS).collect();
        tids.sort_unstable();
        Ok((tids, all.next().is_some()))
    }

    /// Looks at every thread; `doorbells` says what a sleep is compared with. Finish with
    /// [`see_whether_they_ran`](Self::see_whether_they_ran).
    pub fn observe_threads(&self, doorbells: &Doorbells<'_>) -> ProcessObservation {
        let mut observation = ProcessObservation {
            proc: Some(self.id()),
            alive: self.is_alive(),
            has_end: None,
            threads: Vec::new(),
        };
        let mut buffer = Vec::with_capacity(4096);
        let (tids, more) = self.tids_and_rest().unwrap_or_default();
        for tid in tids {
            observation
                .threads
                .extend(self.observe_thread(tid, doorbells, &mut buffer));
        }
        if more {
            observation.threads.push(the_rest());
        }
        observation
    }

    /// The second look at the run counts: marks the threads that ran since the first, and those that ended.
    pub fn see_whether_they_ran(&self, observation: &mut ProcessObservation) {
        let mut buffer = Vec::with_capacity(256);
        for thread in &mut observation.threads {
            thread.ran_meanwhile =
                thread.tid == REST || thread.runs != self.runs(thread.tid, &mut buffer);
        }
        observation.alive = self.is_alive();
    }

    /// How often a thread was put on a CPU; `None` if the kernel does not count or the thread is gone.
    pub fn runs(&self, tid: Tid, buffer: &mut Vec<u8>) -> Option<u64> {
        read_once(self.dir(), &format!("task/{}/schedstat", tid.0), buffer)?;
        parse_runs(buffer)
    }

    /// The functions of the kernel in which a thread sleeps, innermost first; `None` without the right to see them.
    pub fn kernel_stack(&self, tid: Tid) -> Option<Vec<String>> {
        let mut buffer = Vec::new();
        let read = read_once(self.dir(), &format!("task/{}/stack", tid.0), &mut buffer);
        let text = match read {
            Some(()) => String::from_utf8_lossy(&buffer).into_owned(),
            None => rights::kernel_stack(self.id(), tid)?,
        };
        let frames = text
            .lines()
            // `[<0>] ep_poll+0x2f1/0x3e0`
            .filter_map(|line| Some(line.split_once("] ")?.1.split('+').next()?.to_owned()))
            // The way in is the same for all.
            .filter(|name| !name.starts_with("do_syscall_64") && !name.starts_with("entry_"))
            .collect();
        Some(frames)
    }

    /// State letter of one thread, and how often it ran before that was read.
    pub(crate) fn runs_and_state(
        &self,
        tid: Tid,
        buffer: &mut Vec<u8>,
    ) -> Option<(Option<u64>, char)> {
        let runs = self.runs(tid, buffer);
        read_once(self.dir(), &format!("task/{}/stat", tid.0), buffer)?;
        Some((runs, parse_stat(buffer)?.state))
    }

    /// One thread; `None` if it is gone. The run count is read first, so that whatever follows is covered by it.
    fn observe_thread(
        &self,
        tid: Tid,
        doorbells: &Doorbells<'_>,
        buffer: &mut Vec<u8>,
    ) -> Option<ThreadObservation> {
        let task = self
            .open_at(&format!("task/{}", tid.0), OFlags::PATH)
            .ok()?;
        let task = task.as_fd();
        read_once(task, "schedstat", buffer)?;
        let runs = parse_runs(buffer);
        let cpu_ns = buffer
            .split(u8::is_ascii_whitespace)
            .next()
            .and_then(number);
        read_once(task, "status", buffer)?;
        let mut thread = ThreadObservation {
            tid,
            name: unescaped(status_field(buffer, b"Name:")?),
            state: char::from(*status_field(buffer, b"State:")?.first()?),
            syscall: None,
            wchan: None,
            runs,
            sleeps: status_field(buffer, b"voluntary_ctxt_switches:").and_then(number),
            cpu_ns,
            ran_meanwhile: false,
            waits_for: WaitsFor::Nothing,
            stack: None,
        };
        if thread.state == 'R' {
            return Some(thread);
        }
        // "0" for a running thread and without the right to see it.
        thread.wchan = read_once(task, "wchan", buffer)
            .map(|()| String::from_utf8_lossy(buffer).into_owned())
            .filter(|name| name != "0" && !name.is_empty());
        if thread.wchan.is_none() && is_queued(task, buffer) {
            thread.state = 'R';
            return Some(thread);
        }
        if read_once(task, "syscall", buffer).is_some() {
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
}

/// What a thread that is off the CPU blocks in. `task` is its directory.
pub(super) fn blocked_call(task: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> Option<BlockedCall> {
    if is_queued(task, buffer) {
        return None;
    }
    read_once(task, "syscall", buffer)?;
    parse_syscall(buffer)
}

/// Whether a thread is on the run queue still, whatever its state says: it was preempted on its way into a sleep, or while it
/// executes another program. `syscall` would keep its reader waiting until it is off it: 460 ms on two busy processors.
///
/// It has no wait channel then, though `stat` says that it waits. Before Linux 5.16 both say the same, and this never says yes.
fn is_queued(task: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> bool {
    let without_channel = read_once(task, "wchan", buffer).is_some() && buffer == b"0";
    without_channel
        && read_once(task, "stat", buffer).is_some()
        && parse_stat(buffer)
            .is_some_and(|stat| stat.state == 'R' || matches!(stat.state, 'S' | 'D') && stat.waits)
}

/// The third number of `schedstat`.
pub(super) fn parse_runs(schedstat: &[u8]) -> Option<u64> {
    number(schedstat.split(u8::is_ascii_whitespace).nth(2)?)
}

fn number(word: &[u8]) -> Option<u64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

/// A name as `/proc/PID/status` writes it: line ends and backslashes are escaped.
pub(super) fn unescaped(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    if !name.contains('\\') {
        return name.into_owned();
    }
    let mut plain = String::with_capacity(name.len());
    let mut characters = name.chars();
    while let Some(character) = characters.next() {
        plain.push(match character {
            '\\' => match characters.next() {
                Some('n') => '\n',
                Some(other) => other,
                None => '\\',
            },
            other => other,
        });
    }
    plain
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
    fn a_thread_on_the_run_queue_is_not_asked_for_its_call() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write(
            "syscall",
            "232 0x3 0x7ff1 0x400 0x1 0x0 0x8 0x7ffc 0x7f12\n",
        );
        let task = std::fs::File::open(folder.path()).unwrap();
        for (wchan, state, waits, is_told) in [
            ("ep_poll", 'S', 1, true),
            // Preempted on its way into the sleep, and the same before 5.16 or where one may not look.
            ("0", 'S', 1, false),
            ("0", 'S', 0, true),
            ("0", 'R', 0, false),
            ("0", 'Z', 1, true),
        ] {
            write("wchan", wchan);
            let fields =
                "1 17 17 0 -1 64 1 2 3 4 5 6 7 8 20 0 1 0 4711 23 24 25 26 27 28 29 30 31 32 33 34";
            write("stat", &format!("17 (x) {state} {fields} {waits} 0"));
            let call = blocked_call(task.as_fd(), &mut Vec::new());
            assert_eq!(call.is_some(), is_told, "{wchan} {state} {waits}");
        }
        std::fs::remove_file(folder.path().join("wchan")).unwrap();
        assert!(
            blocked_call(task.as_fd(), &mut Vec::new()).is_some(),
            "a kernel without wait channels"
        );
    }

    #[test]
    fn names_are_unescaped() {
        assert_eq!(unescaped(b"tokio-rt-worker"), "tokio-rt-worker");
        assert_eq!(unescaped(br"a\nb\\c\"), "a\nb\\c\\");
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
