//! Children that are asked too.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::block::say;

struct Child {
    pid: u32,
    pidfd: OwnedFd,
}

static CHILDREN: Mutex<Vec<Child>> = Mutex::new(Vec::new());

pub(crate) fn register(pid: u32) -> io::Result<()> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let raw = raw.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{pid} is no process id"),
        )
    })?;
    let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
    let mut children = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
    children.retain(|child| child.pid != pid && has_not_ended(child));
    children.push(Child { pid, pidfd });
    Ok(())
}

pub(crate) fn unregister(pid: u32) {
    CHILDREN
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .retain(|child| child.pid != pid);
}

/// A pidfd becomes readable when its process ends, reaped or not.
fn has_not_ended(child: &Child) -> bool {
    let mut fds = [rustix::event::PollFd::new(
        &child.pidfd,
        rustix::event::PollFlags::IN,
    )];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    !matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(1..))
}

/// Sends SIGUSR1 to each child that has a handler for it, and forgets those that have ended.
pub(crate) fn forward() {
    let mut children = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
    children.retain(|child| {
        if !has_not_ended(child) {
            return false;
        }
        if !handles_sigusr1(child.pid) {
            say(&format!(
                "(child {} has no SIGUSR1 handler: the signal would end it, so it was not sent)\n",
                child.pid
            ));
            return true;
        }
        match pidfd_send_signal(&child.pidfd, Signal::USR1) {
            Err(Errno::SRCH) => false,
            Err(error) => {
                say(&format!(
                    "(SIGUSR1 could not be sent to child {}: {error})\n",
                    child.pid
                ));
                true
            }
            Ok(()) => true,
        }
    });
}

/// Looked up by pid while the pidfd shows the process alive, so the pid is still its own.
fn handles_sigusr1(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status
        .lines()
        .find_map(|line| line.strip_prefix("SigCgt:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    caught >> (libc::SIGUSR1 - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn known(pid: u32) -> bool {
        CHILDREN
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .any(|child| child.pid == pid)
    }

    #[test]
    fn a_child_that_ended_is_forgotten_and_one_without_a_handler_survives() {
        let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
        let mut ended = Command::new("true").spawn().unwrap();
        // Not reaped yet, so the pid is still there to be registered.
        register(sleeper.id()).unwrap();
        register(ended.id()).unwrap();
        ended.wait().unwrap();
        forward();
        assert!(known(sleeper.id()));
        assert!(!known(ended.id()));
        assert!(
            sleeper.try_wait().unwrap().is_none(),
            "the signal must not have been sent"
        );
        unregister(sleeper.id());
        assert!(!known(sleeper.id()));
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
    }

    #[test]
    fn what_is_no_process_is_refused() {
        assert!(register(0).is_err());
        assert!(register(u32::MAX).is_err());
    }
}
