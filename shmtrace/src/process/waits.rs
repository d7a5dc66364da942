//! What a sleeping thread sleeps on, as far as one lane is concerned.

use std::os::fd::AsFd as _;

use rustix::fs::OFlags;
use shmtrace_engine::{
    SocketInode, Tid,
    input::{BlockedCall, WaitsFor},
};

use super::{Process, threads::blocked_call};

/// Events that a queued datagram raises: `EPOLLIN | EPOLLRDNORM` (`POLLIN | POLLRDNORM` are the same bits).
const READABLE: u32 = 0x1 | 0x40;
/// File descriptors of one `poll` or `select` that are looked at.
const MAX_POLLED: u64 = 4_096;
/// How deep epoll instances that watch epoll instances are followed; the kernel allows five.
const MAX_NESTING: u32 = 5;

/// What a sleep is compared with: the lane's doorbell and the hub's place in the process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Doorbells<'a> {
    /// The consumer's end, or all ends that could be it.
    pub ends: &'a [SocketInode],
    /// Where the process maps the hub: `(address, bytes, file offset)`.
    pub hub: &'a [(u64, u64, u64)],
}

/// What this thread, in state S in this call, waits for.
pub(super) fn waits_for(
    process: &Process,
    tid: Tid,
    call: &BlockedCall,
    doorbells: &Doorbells<'_>,
    buffer: &mut Vec<u8>,
) -> WaitsFor {
    let fd = call.args[0] as u32;
    match kind(i64::from(call.number)) {
        Kind::Epoll => match epoll_watches(process, tid, fd, doorbells.ends, MAX_NESTING, buffer) {
            Some(true) => WaitsFor::Doorbell,
            Some(false) => WaitsFor::OtherFds,
            None => WaitsFor::SomeFds,
        },
        Kind::Poll => among(process, tid, polled_fds(process, call), doorbells.ends),
        Kind::Select => among(process, tid, selected_fds(process, call), doorbells.ends),
        Kind::Receive
            if process
                .socket_of(tid, fd)
                .is_some_and(|end| doorbells.ends.contains(&end)) =>
        {
            WaitsFor::Doorbell
        }
        Kind::Futex => {
            hub_word(call.args[0], doorbells.hub).map_or(WaitsFor::Futex, WaitsFor::HubFutex)
        }
        Kind::ManyFutexes => WaitsFor::Futex,
        Kind::Unclear => WaitsFor::SomeFds,
        Kind::Receive | Kind::Other => WaitsFor::Other,
    }
}

/// Threads of one process that are asked what they sleep for.
const MAX_ASKED: usize = 64;

impl Process {
    /// The sockets that its threads sleep for now.
    pub(super) fn awaited_sockets(&self, buffer: &mut Vec<u8>) -> Vec<SocketInode> {
        let tids = self.tids().unwrap_or_default();
        let mut sockets = Vec::new();
        for tid in tids.into_iter().take(MAX_ASKED) {
            let task = self.open_at(&format!("task/{}", tid.0), OFlags::PATH);
            let call = task
                .ok()
                .and_then(|task| blocked_call(task.as_fd(), buffer));
            if let Some(call) = call {
                sockets.extend(awaited(self, tid, &call, buffer));
            }
        }
        sockets
    }
}

/// The sockets on which a datagram would end this sleep.
fn awaited(
    process: &Process,
    tid: Tid,
    call: &BlockedCall,
    buffer: &mut Vec<u8>,
) -> Vec<SocketInode> {
    let fd = call.args[0] as u32;
    let fds = match kind(i64::from(call.number)) {
        Kind::Epoll => {
            let entries = process.epoll_entries(tid, fd, buffer).unwrap_or_default();
            let readable = entries.iter().filter(|entry| entry.events & READABLE != 0);
            return readable.map(|entry| SocketInode(entry.inode)).collect();
        }
        Kind::Poll => polled_fds(process, call),
        Kind::Select => selected_fds(process, call),
        Kind::Receive => Some(vec![fd]),
        Kind::Futex | Kind::ManyFutexes | Kind::Unclear | Kind::Other => None,
    };
    fds.unwrap_or_default()
        .into_iter()
        .filter_map(|fd| process.socket_of(tid, fd))
        .collect()
}

/// `restart_syscall` stands for the call that a stop interrupted; its arguments are still in the registers, and the
/// wait channel tells which it was.
pub(super) fn restarted(number: u16, wchan: Option<&str>) -> u16 {
    if i64::from(number) != libc::SYS_restart_syscall {
        return number;
    }
    let call = match wchan {
        Some(channel) if channel.starts_with("futex") => libc::SYS_futex,
        #[cfg(target_arch = "x86_64")]
        Some(channel) if channel.contains("poll") => libc::SYS_poll,
        #[cfg(not(target_arch = "x86_64"))]
        Some(channel) if channel.contains("poll") => libc::SYS_ppoll,
        Some(channel) if channel.contains("nanosleep") => libc::SYS_clock_nanosleep,
        _ => return number,
    };
    u16::try_from(call).unwrap_or(number)
}

/// Families of blocking calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Epoll,
    Poll,
    Select,
    Receive,
    Futex,
    ManyFutexes,
    /// It may well wait for the doorbell, in a way that cannot be read from here (`io_uring`).
    Unclear,
    Other,
}

fn kind(number: i64) -> Kind {
    match number {
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait => Kind::Epoll,
        libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => Kind::Epoll,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll => Kind::Poll,
        libc::SYS_ppoll => Kind::Poll,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_select => Kind::Select,
        libc::SYS_pselect6 => Kind::Select,
        libc::SYS_recvfrom
        | libc::SYS_recvmsg
        | libc::SYS_recvmmsg
        | libc::SYS_read
        | libc::SYS_readv => Kind::Receive,
        libc::SYS_futex | FUTEX_WAIT => Kind::Futex,
        libc::SYS_futex_waitv => Kind::ManyFutexes,
        libc::SYS_io_uring_enter => Kind::Unclear,
        _ => Kind::Other,
    }
}

/// `futex_wait`, from Linux 6.7; the same number everywhere.
const FUTEX_WAIT: i64 = 455;

/// Whether an epoll instance would tell of a datagram on one of `ends`; `None` if that cannot be read.
fn epoll_watches(
    process: &Process,
    tid: Tid,
    fd: u32,
    ends: &[SocketInode],
    depth: u32,
    buffer: &mut Vec<u8>,
) -> Option<bool> {
    let entries = process.epoll_entries(tid, fd, buffer).ok()?;
    let watched = |entry: &&super::EpollEntry| entry.events & READABLE != 0;
    if entries
        .iter()
        .filter(watched)
        .any(|entry| ends.contains(&SocketInode(entry.inode)))
    {
        return Some(true);
    }
    if depth == 0 {
        return None;
    }
    // An epoll instance in it shows itself by entries of its own.
    for entry in entries.iter().filter(watched) {
        let nested = process
            .epoll_entries(tid, entry.fd, buffer)
            .is_ok_and(|inner| !inner.is_empty());
        if nested && epoll_watches(process, tid, entry.fd, ends, depth - 1, buffer)? {
            return Some(true);
        }
    }
    Some(false)
}

/// What waiting for these fds is to a lane; `None` if they could not be read.
fn among(process: &Process, tid: Tid, fds: Option<Vec<u32>>, ends: &[SocketInode]) -> WaitsFor {
    let Some(fds) = fds else {
        return WaitsFor::SomeFds;
    };
    let is_end = |fd| {
        process
            .socket_of(tid, fd)
            .is_some_and(|inode| ends.contains(&inode))
    };
    if fds.into_iter().any(is_end) {
        WaitsFor::Doorbell
    } else {
        WaitsFor::OtherFds
    }
}

/// The fds that a `poll` wants to read from, out of the process's memory.
fn polled_fds(process: &Process, call: &BlockedCall) -> Option<Vec<u32>> {
    let count = call.args[1];
    if count > MAX_POLLED {
        return None;
    }
    let memory = read_memory(process, call.args[0], count as usize * 8)?;
    let entries = memory.chunks_exact(8).map(|entry| {
        let fd = i32::from_ne_bytes([entry[0], entry[1], entry[2], entry[3]]);
        (fd, u32::from(u16::from_ne_bytes([entry[4], entry[5]])))
    });
    let readable = entries.filter(|(_, events)| events & READABLE != 0);
    Some(
        readable
            .filter_map(|(fd, _)| u32::try_from(fd).ok())
            .collect(),
    )
}

/// The read set of a `select`, out of the process's memory. The kernel writes it only at the return.
fn selected_fds(process: &Process, call: &BlockedCall) -> Option<Vec<u32>> {
    let (count, address) = (call.args[0], call.args[1]);
    if address == 0 {
        return Some(Vec::new());
    }
    if count > MAX_POLLED || cfg!(target_endian = "big") {
        return None;
    }
    let set = read_memory(process, address, count.div_ceil(64) as usize * 8)?;
    // Words of a long: on little-endian machines bit n stands in byte n / 8.
    let set = (0..count as u32).filter(|fd| {
        set.get(*fd as usize / 8)
            .is_some_and(|byte| byte >> (fd % 8) & 1 == 1)
    });
    Some(set.collect())
}

/// Offset in the hub file of an address of the process.
fn hub_word(address: u64, hub: &[(u64, u64, u64)]) -> Option<u64> {
    hub.iter().find_map(|(start, bytes, offset)| {
        let within = address
            .checked_sub(*start)
            .filter(|within| within < bytes)?;
        offset.checked_add(within)
    })
}

/// All of these bytes of the process's memory.
fn read_memory(process: &Process, address: u64, bytes: usize) -> Option<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    (process.read_memory(address, &mut buffer) == bytes).then_some(buffer)
}

#[cfg(test)]
mod tests {
    use std::{
        os::{
            fd::{AsRawFd as _, RawFd},
            unix::net::UnixDatagram,
        },
        time::Duration,
    };

    use rustix::event::epoll;

    use super::*;

    /// Runs `sleep` in a thread and says what it is seen to wait for; `wake` must end it.
    fn seen(
        ends: &[SocketInode],
        sleep: impl FnOnce() + Send + 'static,
        wake: impl FnOnce(),
    ) -> WaitsFor {
        let name = format!("w{:?}", std::thread::current().id()).replace(['(', ')'], "");
        let name: String = name.chars().take(15).collect();
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(sleep)
            .unwrap();
        let process = Process::open(std::process::id()).unwrap();
        let waits_for = loop {
            let observation = process.observe_threads(&Doorbells { ends, hub: &[] });
            let found = observation
                .threads
                .iter()
                .find(|thread| thread.name == name);
            match found {
                Some(thread) if thread.state == 'S' && thread.waits_for != WaitsFor::Futex => {
                    break thread.waits_for;
                }
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        wake();
        thread.join().unwrap();
        waits_for
    }

    fn ring_once(end: &UnixDatagram) {
        assert_eq!(end.send(b"x").unwrap(), 1);
    }

    fn inode(fd: RawFd) -> SocketInode {
        let process = Process::open(std::process::id()).unwrap();
        let tid = Tid(rustix::thread::gettid()
            .as_raw_nonzero()
            .get()
            .cast_unsigned());
        process.socket_of(tid, fd.cast_unsigned()).unwrap()
    }

    #[test]
    fn a_poll_of_very_many_fds_may_be_for_the_doorbell() {
        let process = Process::open(std::process::id()).unwrap();
        let entries = vec![[0_u8; 8]; MAX_POLLED as usize + 1];
        let poll = |count: u64| {
            let call = BlockedCall {
                number: libc::SYS_ppoll as u16,
                args: [entries.as_ptr() as u64, count, 0, 0, 0, 0],
                sp: 0,
                pc: 0,
            };
            among(&process, Tid(1), polled_fds(&process, &call), &[])
        };
        assert_eq!(poll(MAX_POLLED), WaitsFor::OtherFds);
        assert_eq!(poll(MAX_POLLED + 1), WaitsFor::SomeFds);
    }

    #[test]
    fn an_epoll_that_watches_the_doorbell_and_one_that_does_not() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let (other, other_peer) = UnixDatagram::pair().unwrap();
        let ends = [inode(ours.as_raw_fd())];
        for (watched, ring, expected) in [
            (&ours, &theirs, WaitsFor::Doorbell),
            (&other, &other_peer, WaitsFor::OtherFds),
        ] {
            let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
            epoll::add(
                &poll,
                watched,
                epoll::EventData::new_u64(0),
                epoll::EventFlags::IN,
            )
            .unwrap();
            let sleep = move || {
                let mut events = Vec::with_capacity(1);
                epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None).unwrap();
            };
            assert_eq!(seen(&ends, sleep, || ring_once(ring)), expected);
        }
    }

    /// The one way of it on aarch64, and what some libcs use everywhere.
    #[test]
    fn epoll_pwait_waits_for_the_doorbell_too() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let ends = [inode(ours.as_raw_fd())];
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let data = epoll::EventData::new_u64(0);
        epoll::add(&poll, &ours, data, epoll::EventFlags::IN).unwrap();
        let sleep = move || {
            let mut event = libc::epoll_event { events: 0, u64: 0 };
            // SAFETY: room for one event, and no mask of signals.
            let ready = unsafe {
                libc::epoll_pwait(poll.as_raw_fd(), &raw mut event, 1, -1, std::ptr::null())
            };
            assert_eq!(ready, 1);
        };
        assert_eq!(
            seen(&ends, sleep, || ring_once(&theirs)),
            WaitsFor::Doorbell
        );
        assert_eq!(kind(libc::SYS_epoll_pwait), Kind::Epoll);
    }

    #[test]
    fn a_nested_epoll_is_followed_and_a_spent_one_shot_entry_does_not_count() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let ends = [inode(ours.as_raw_fd())];
        let inner = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let outer = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let data = epoll::EventData::new_u64(0);
        epoll::add(&inner, &ours, data, epoll::EventFlags::IN).unwrap();
        epoll::add(&outer, &inner, data, epoll::EventFlags::IN).unwrap();
        let process = Process::open(std::process::id()).unwrap();
        let tid = Tid(rustix::thread::gettid()
            .as_raw_nonzero()
            .get()
            .cast_unsigned());
        let watches = |fd: RawFd| {
            epoll_watches(
                &process,
                tid,
                fd.cast_unsigned(),
                &ends,
                MAX_NESTING,
                &mut Vec::new(),
            )
        };
        assert_eq!(watches(outer.as_raw_fd()), Some(true));
        epoll::modify(
            &inner,
            &ours,
            data,
            epoll::EventFlags::IN | epoll::EventFlags::ONESHOT,
        )
        .unwrap();
        theirs.send(b"x").unwrap();
        let mut events = Vec::with_capacity(1);
        epoll::wait(&inner, rustix::buffer::spare_capacity(&mut events), None).unwrap();
        assert_eq!(watches(inner.as_raw_fd()), Some(false));
        assert_eq!(watches(-1), None);
    }

    #[test]
    fn poll_select_and_receives_are_told_apart() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let ends = [inode(ours.as_raw_fd())];
        let fd = ours.as_raw_fd();

        let sleeper = ours.try_clone().unwrap();
        let receive = move || {
            sleeper.recv(&mut [0; 8]).unwrap();
        };
        assert_eq!(
            seen(&ends, receive, || ring_once(&theirs)),
            WaitsFor::Doorbell
        );

        let sleeper = ours.try_clone().unwrap();
        let poll = move || {
            let mut fds = [rustix::event::PollFd::new(
                &sleeper,
                rustix::event::PollFlags::IN,
            )];
            rustix::event::poll(&mut fds, None).unwrap();
        };
        assert_eq!(seen(&ends, poll, || ring_once(&theirs)), WaitsFor::Doorbell);

        let select = move || {
            // SAFETY: all-zero is the empty set.
            let mut set: libc::fd_set = unsafe { std::mem::zeroed() };
            // SAFETY: `fd` is below FD_SETSIZE in a test process and open for the test's length; the set is ours.
            unsafe {
                libc::FD_SET(fd, &raw mut set);
                let none = std::ptr::null_mut();
                libc::select(fd + 1, &raw mut set, none, none, std::ptr::null_mut());
            }
        };
        // A byte is pending from the poll test: take it first.
        ours.recv(&mut [0; 8]).unwrap();
        assert_eq!(
            seen(&ends, select, || ring_once(&theirs)),
            WaitsFor::Doorbell
        );
    }

    #[test]
    fn a_sleep_is_another_call() {
        let sleep = || std::thread::sleep(Duration::from_millis(300));
        assert_eq!(seen(&[], sleep, || ()), WaitsFor::Other);
    }

    #[test]
    fn hub_words_are_found_in_every_mapping() {
        let hub = [(0x1000, 0x1000, 0), (0x8000, 0x1000, 0x5000)];
        assert_eq!(hub_word(0x1010, &hub), Some(0x10));
        assert_eq!(hub_word(0x8004, &hub), Some(0x5004));
        assert_eq!(hub_word(0x2000, &hub), None);
        assert_eq!(hub_word(0, &hub), None);
        assert_eq!(
            hub_word(u64::MAX, &[(u64::MAX, 1, u64::MAX)]),
            Some(u64::MAX)
        );
    }

    #[test]
    fn interrupted_calls_are_named_by_their_wait_channel() {
        let restart = u16::try_from(libc::SYS_restart_syscall).unwrap();
        let futex = u16::try_from(libc::SYS_futex).unwrap();
        assert_eq!(restarted(restart, Some("futex_wait_queue")), futex);
        assert_eq!(restarted(restart, Some("something")), restart);
        assert_eq!(restarted(7, Some("futex_wait_queue")), 7);
    }
}
