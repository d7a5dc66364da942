//! What `/proc` says about a process: enough to know in which state a fault would meet it.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

/// One thread at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadLook {
    /// Thread id.
    pub tid: u32,
    /// `S`, `R`, `T`, ... as in `/proc/PID/stat`.
    pub state: char,
    /// The number of the syscall that it is in, if it is blocked in one and we may see it.
    pub syscall: Option<i64>,
}

impl ThreadLook {
    /// Whether it sleeps in a system call other than the waits of epoll. One that was woken between the two looks at it
    /// is in none.
    pub fn blocks(&self) -> bool {
        self.state == 'S' && self.syscall.is_some() && !self.in_epoll()
    }

    /// Whether it waits for events of an epoll instance.
    pub fn in_epoll(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self.syscall == Some(libc::SYS_epoll_wait) {
            return true;
        }
        self.syscall == Some(libc::SYS_epoll_pwait) || self.syscall == Some(libc::SYS_epoll_pwait2)
    }
}

/// All threads of a process; an error when it is gone.
pub fn threads(pid: u32) -> io::Result<Vec<ThreadLook>> {
    let mut looks = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let Some(tid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // A thread may end between the listing and the look: it is then no thread of the process any more.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")) else {
            continue;
        };
        let Some(state) = state_of(&stat) else {
            continue;
        };
        let syscall = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall"))
            .ok()
            .and_then(|line| {
                line.split_whitespace()
                    .next()
                    .and_then(|word| word.parse().ok())
            });
        looks.push(ThreadLook {
            tid,
            state,
            syscall,
        });
    }
    Ok(looks)
}

/// The state letter of a `stat` line, whose second field may hold anything, parentheses included.
fn state_of(stat: &str) -> Option<char> {
    stat.get(stat.rfind(')')? + 2..)?.chars().next()
}

/// Whether every thread of the process sleeps interruptibly.
pub fn is_asleep(pid: u32) -> bool {
    threads(pid).is_ok_and(|all| !all.is_empty() && all.iter().all(|thread| thread.state == 'S'))
}

/// Whether every thread sleeps and one of them in epoll: the state of an idle runtime.
pub fn is_idle(pid: u32) -> bool {
    threads(pid).is_ok_and(|all| {
        all.iter().all(|thread| thread.state == 'S') && all.iter().any(ThreadLook::in_epoll)
    })
}

/// Whether every thread is stopped by a signal.
pub fn is_stopped(pid: u32) -> bool {
    threads(pid).is_ok_and(|all| !all.is_empty() && all.iter().all(|thread| thread.state == 'T'))
}

/// Whether the process is gone, or only waits to be reaped.
pub fn is_dead(pid: u32) -> bool {
    threads(pid).map_or(true, |all| all.iter().all(|thread| thread.state == 'Z'))
}

/// Waits until `condition` holds, looking every 200 us; false when it did not within `limit`.
pub async fn until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() >= limit {
            return false;
        }
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_letter_follows_the_last_parenthesis() {
        assert_eq!(state_of("12 (a) b) S 1 12"), Some('S'));
        assert_eq!(state_of("12 (cat) R 1 12"), Some('R'));
        assert_eq!(state_of("12 (cat"), None);
        assert_eq!(state_of("12 (cat)"), None);
    }

    #[test]
    fn a_running_process_is_not_asleep() {
        let own = std::process::id();
        assert!(!is_asleep(own));
        assert!(threads(own).is_ok_and(|all| all.iter().any(|thread| thread.state == 'R')));
    }
}
