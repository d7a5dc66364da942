//! The threads of this process, as /proc shows them.

use std::fmt::Write as _;
use std::fs;

use crate::signal::THREAD;
use crate::stack::{Entry, Maps};

/// One line for each thread, with its stack under it. Our own threads are left out.
pub(crate) fn section(with_names: bool) -> String {
    let mut ids: Vec<u32> = fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    ids.sort_unstable();
    let maps = Maps::of_this_process();
    let mut text = String::from("threads:\n");
    for id in ids {
        if let Some(thread) = Thread::read(id)
            && !thread.name.starts_with(THREAD)
        {
            thread.describe(&maps, with_names, &mut text);
        }
    }
    text
}

struct Thread {
    id: u32,
    name: String,
    /// The letter of `/proc/PID/stat`: R, S, D, T, ...
    state: String,
    /// Kernel function that it sleeps in, where the kernel tells.
    wait_channel: String,
    entry: Entry,
}

impl Thread {
    /// `None` when the thread has ended meanwhile.
    fn read(id: u32) -> Option<Self> {
        let file = |name: &str| fs::read_to_string(format!("/proc/self/task/{id}/{name}"));
        let stat = file("stat").ok()?;
        // The name stands in parentheses and may contain any character, so it ends at the last one.
        let (_, after) = stat.rsplit_once(')')?;
        Some(Self {
            id,
            name: file("comm").ok()?.trim_end().to_owned(),
            state: after.split_whitespace().next()?.to_owned(),
            wait_channel: file("wchan").unwrap_or_default(),
            entry: file("syscall").map_or(Entry::Unknown, |line| Entry::parse(&line)),
        })
    }

    fn describe(&self, maps: &Maps, with_names: bool, text: &mut String) {
        let _infallible = write!(text, "  {} \"{}\" {}", self.id, self.name, self.state);
        match self.entry {
            Entry::Running => text.push_str(" running, so without a stack"),
            Entry::Unknown => text.push_str(" system call unknown"),
            Entry::Asleep { call, .. } => {
                let _infallible = write!(text, " in {}", syscall_name(call));
            }
        }
        if !matches!(self.wait_channel.as_str(), "" | "0") {
            let _infallible = write!(text, " ({})", self.wait_channel);
        }
        text.push('\n');
        for (depth, address) in maps.stack(&self.entry).into_iter().enumerate() {
            let place = maps.place(address);
            // A return address may already belong to what follows the call.
            let instruction = if depth == 0 { address } else { address - 1 };
            let name = with_names.then(|| name_of(instruction)).flatten();
            let _infallible = match name {
                Some(name) => writeln!(text, "      {name} ({place})"),
                None => writeln!(text, "      {place}"),
            };
        }
    }
}

/// The function that an instruction belongs to, after those that were inlined there, innermost first.
fn name_of(instruction: usize) -> Option<String> {
    let mut names = Vec::new();
    backtrace::resolve(instruction as *mut _, |symbol| {
        names.extend(symbol.name().map(|name| format!("{name:#}")));
    });
    (!names.is_empty()).then(|| names.join(" < "))
}

/// The calls that threads of a transport sleep in; others by number.
fn syscall_name(call: i64) -> String {
    const NAMES: &[(libc::c_long, &str)] = &[
        (libc::SYS_clock_nanosleep, "clock_nanosleep"),
        (libc::SYS_epoll_pwait, "epoll_pwait"),
        (libc::SYS_epoll_pwait2, "epoll_pwait2"),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_epoll_wait, "epoll_wait"),
        (libc::SYS_flock, "flock"),
        (libc::SYS_futex, "futex"),
        (libc::SYS_nanosleep, "nanosleep"),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_poll, "poll"),
        (libc::SYS_ppoll, "ppoll"),
        (libc::SYS_read, "read"),
        (libc::SYS_recvfrom, "recvfrom"),
        (libc::SYS_recvmsg, "recvmsg"),
        (libc::SYS_sendto, "sendto"),
        (libc::SYS_wait4, "wait4"),
        (libc::SYS_waitid, "waitid"),
        (libc::SYS_write, "write"),
    ];
    NAMES
        .iter()
        .find(|(number, _)| *number == call)
        .map_or_else(
            || format!("system call {call}"),
            |(_, name)| (*name).to_owned(),
        )
}
