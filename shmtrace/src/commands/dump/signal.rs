//! `dump --signal`: SIGUSR1 to those that have a handler, and what they print.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    os::fd::AsFd as _,
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::{process::Process, report::printable};

/// Time for a handler to print.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Bytes of one process's answer that are shown.
const MAX_ANSWER: u64 = 1 << 20;

/// Somebody who was asked.
struct Asked {
    process: Process,
    name: String,
    output: Output,
}

/// Where its stderr goes.
enum Output {
    /// A file: what comes after this offset is the answer.
    File(File, u64),
    /// Something that cannot be read without taking it away from its reader.
    Elsewhere(String),
}

/// Signals, waits, and returns lines that say what happened.
pub(super) fn send_and_collect(pids: &[u32]) -> Vec<String> {
    let handlers: BTreeSet<u32> = pids
        .iter()
        .copied()
        .filter(|pid| handles_sigusr1(*pid))
        .collect();
    let mut lines = Vec::new();
    let mut asked = Vec::new();
    for pid in &handlers {
        let Ok(process) = Process::open(*pid) else {
            continue;
        };
        let Ok(stat) = process.stat() else { continue };
        if handlers.contains(&stat.parent) {
            // A host forwards the signal to its plugins: asked twice, they would answer twice.
            continue;
        }
        let output = output_of(&process);
        match send(&process) {
            Ok(()) => asked.push(Asked {
                process,
                name: stat.comm,
                output,
            }),
            Err(error) => lines.push(format!("SIGUSR1 could not be sent to {pid}: {error}")),
        }
    }
    if asked.is_empty() {
        lines.push(
            "SIGUSR1: no process of the tree has a handler for it, so it was sent to nobody".into(),
        );
        return lines;
    }
    std::thread::sleep(PATIENCE);
    for one in asked {
        lines.extend(answer(one));
    }
    lines
}

/// Bit 9 of the mask of caught signals: anything else than a handler would end the process.
fn handles_sigusr1(pid: u32) -> bool {
    let caught = Process::open(pid)
        .ok()
        .and_then(|process| process.caught_signals().ok())
        .unwrap_or(0);
    caught >> (libc::SIGUSR1 - 1) & 1 == 1
}

/// Through a pidfd, after a second look at the handler: a process that executes another program loses its handlers.
fn send(process: &Process) -> std::io::Result<()> {
    let pid = i32::try_from(process.id().pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(std::io::ErrorKind::NotFound)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let caught = process.caught_signals()?;
    if caught >> (libc::SIGUSR1 - 1) & 1 == 0 {
        return Err(std::io::Error::other("it has no handler any more"));
    }
    Ok(pidfd_send_signal(pidfd.as_fd(), Signal::USR1)?)
}

fn output_of(process: &Process) -> Output {
    let link = format!("/proc/{}/fd/2", process.id().pid);
    let target = std::fs::read_link(&link)
        .map_or_else(|_| "nowhere".into(), |target| target.display().to_string());
    // Only a regular file can be read without effect: opening a pipe or terminal would take what others wait for.
    if !std::fs::metadata(&link).is_ok_and(|metadata| metadata.is_file()) {
        return Output::Elsewhere(target);
    }
    let end = File::open(&link).and_then(|mut file| {
        let end = file.seek(SeekFrom::End(0))?;
        Ok((file, end))
    });
    match end {
        Ok((file, end)) => Output::File(file, end),
        Err(_) => Output::Elsewhere(target),
    }
}

fn answer(asked: Asked) -> Vec<String> {
    let who = format!("{} ({})", asked.process.id().pid, printable(&asked.name));
    match asked.output {
        Output::Elsewhere(target) => {
            vec![format!(
                "SIGUSR1 sent to {who}; it prints to {}",
                printable(&target)
            )]
        }
        Output::File(mut file, end) => {
            let mut bytes = Vec::new();
            let read = file
                .seek(SeekFrom::Start(end))
                .and_then(|_| file.take(MAX_ANSWER).read_to_end(&mut bytes));
            if read.is_err() || bytes.is_empty() {
                return vec![format!(
                    "SIGUSR1 sent to {who}; it printed nothing within {} ms",
                    PATIENCE.as_millis()
                )];
            }
            let mut lines = vec![format!(
                "SIGUSR1 sent to {who}; it and its children printed:"
            )];
            lines.extend(
                String::from_utf8_lossy(&bytes)
                    .lines()
                    .map(|line| format!("  {}", printable(line))),
            );
            if bytes.len() as u64 == MAX_ANSWER {
                lines.push(format!("  ... (the first {} KiB of it)", MAX_ANSWER >> 10));
            }
            lines
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn of_a_long_answer_the_beginning_is_shown_and_it_is_said() {
        let mut file = tempfile::tempfile().unwrap();
        let before = b"printed before\n";
        file.write_all(before).unwrap();
        file.write_all(&b"answer\n".repeat(MAX_ANSWER as usize / 4))
            .unwrap();
        let lines = answer(Asked {
            process: Process::open(std::process::id()).unwrap(),
            name: "talker".into(),
            output: Output::File(file, before.len() as u64),
        });
        assert_eq!(lines[1], "  answer");
        assert!(!lines.iter().any(|line| line.contains("before")));
        assert_eq!(lines.last().unwrap(), "  ... (the first 1024 KiB of it)");
        assert!(lines.iter().map(String::len).sum::<usize>() < 2 * MAX_ANSWER as usize);
    }
}
