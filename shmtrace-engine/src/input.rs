//! What the engine is told: topology, events, losses and observations.
//!
//! Plain data without behaviour. The daemon fills it from the probes and from what it reads itself; tests fill it
//! by hand. Times are nanoseconds of `CLOCK_MONOTONIC`.

mod whole;

pub use whole::{
    ClassObservation, DescriptorObservation, HubObservation, MemoryObservation,
    PeerEntryObservation, SlotObservation, Violation,
};

use crate::ids::{HubId, LaneId, Mono, PeerId, ProcId, SocketInode, Tid};

/// Something the engine is told. Inputs may come in any order; the engine sorts events by time behind a watermark.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Input {
    /// A hub, peer or process became known, changed or ended.
    Topology(Topology),
    /// The probes saw a thread do something.
    Event(Event),
    /// Records were lost; the history between `from` and `to` has a hole.
    Loss(Loss),
    /// A cheap look at one ring. Sent for a lane when its indexes changed or while it is not empty.
    Sample(Sample),
    /// The answer to [`Request::ObserveLane`](crate::Request::ObserveLane).
    Lane(Box<LaneObservation>),
    /// The answer to [`Request::ObserveHub`](crate::Request::ObserveHub).
    Hub(Box<HubObservation>),
    /// The answer to [`Request::ObserveMemory`](crate::Request::ObserveMemory).
    Memory(MemoryObservation),
}

/// Who is who.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Topology {
    /// A hub file came into view.
    Hub {
        /// The engine-wide id of this file (one inode, one id).
        hub: HubId,
        /// Its path, for people.
        path: String,
    },
    /// No process of the tree maps the hub any more.
    HubGone {
        /// Which.
        hub: HubId,
    },
    /// What is known of a peer now; replaces what was known before.
    Peer(PeerBinding),
    /// A process of the tree.
    Process {
        /// Which.
        proc: ProcId,
        /// Its name (`comm`, or the base name of `argv[0]` where that says more), unescaped.
        name: String,
    },
    /// A process ended.
    ProcessExited {
        /// Which.
        proc: ProcId,
        /// When.
        at: Mono,
    },
}

/// One peer of a hub: its processes and the two ends of its doorbell, as far as they are known.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PeerBinding {
    /// The hub.
    pub hub: HubId,
    /// The peer's id in the hub's peer table.
    pub peer: PeerId,
    /// Name of the plugin, for people.
    pub name: String,
    /// The plugin's process; `None` until known.
    pub plugin: Option<ProcId>,
    /// The host's process; `None` until known.
    pub host: Option<ProcId>,
    /// The host's end of the doorbell (tokens for lane peer -> host are queued here).
    pub host_end: Option<SocketInode>,
    /// The plugin's end of the doorbell (tokens for lane host -> peer are queued here).
    pub plugin_end: Option<SocketInode>,
    /// The peer entry's flags word as last read.
    pub flags: u32,
    /// False if another traced process also holds an end, or if the daemon could not settle who is who.
    pub certain: bool,
}

/// Both indexes of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Indexes {
    /// `visible_head`: entries ever published.
    pub head: u64,
    /// `tail`: entries ever consumed.
    pub tail: u64,
}

impl Indexes {
    /// Entries that wait; 0 if the indexes are crossed.
    pub const fn len(self) -> u64 {
        self.head.saturating_sub(self.tail)
    }

    /// Whether no entry waits.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// The rings of one peer as a traced thread saw them at the instant of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PeerRings {
    /// The hub.
    pub hub: HubId,
    /// The peer.
    pub peer: PeerId,
    /// Lane host -> peer, if it was read.
    pub to_peer: Option<Indexes>,
    /// Lane peer -> host, if it was read.
    pub to_host: Option<Indexes>,
}

/// One record of the probes, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Event {
    /// When (taken in the probe before the record was reserved).
    pub at: Mono,
    /// On which CPU; records of one CPU are in order.
    pub cpu: u16,
    /// Which process.
    pub proc: ProcId,
    /// Which thread.
    pub tid: Tid,
    /// What.
    pub kind: EventKind,
}

/// What a thread did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum EventKind {
    /// A send on a doorbell end returned: a token was queued on the *other* end (`result` > 0), or was not
    /// (`-EAGAIN`: the queue is full, so one is there already; another errno: the signal is lost).
    Ring {
        /// The end it was sent on.
        end: SocketInode,
        /// System call number, where it was read.
        syscall: Option<u16>,
        /// Bytes sent, or a negated errno.
        result: i32,
        /// The lane's ring at the return, where the mapping could be read.
        rings: Option<PeerRings>,
    },
    /// A receive on a doorbell end returned a token. Receives that found nothing are not recorded.
    Take {
        /// The end it was taken from.
        end: SocketInode,
        /// System call number, where it was read.
        syscall: Option<u16>,
        /// Bytes received, or a negated errno other than EAGAIN.
        result: i32,
        /// The lane's ring at the return, where the mapping could be read.
        rings: Option<PeerRings>,
    },
    /// The thread was switched out asleep (not preempted).
    Sleep {
        /// The system call it sleeps in; `None` outside of one (a page fault).
        syscall: Option<u16>,
        /// The call's first argument: an fd, a futex address.
        arg: u64,
        /// The call waits for fds: epoll, poll or select.
        #[cfg_attr(feature = "serde", serde(default))]
        for_fds: bool,
        /// The rings of the doorbell that its process used last, where the mapping could be read.
        rings: Option<PeerRings>,
    },
    /// `epoll_wait` or a futex wait on a hub word returned to the thread.
    Wake {
        /// System call number.
        syscall: u16,
        /// Its result: ready fds, 0 for a timeout, or a negated errno.
        result: i32,
    },
    /// A futex wake on a word of the hub that woke somebody.
    FutexWake {
        /// The hub.
        hub: HubId,
        /// Offset of the word in the hub file, bytes.
        offset: u64,
        /// Threads woken.
        woken: u32,
    },
    /// The process started another.
    Fork {
        /// The child's pid.
        child: u32,
    },
    /// The process executed another program.
    Exec,
    /// The thread ended.
    Exit {
        /// It was the last thread of its process.
        process: bool,
    },
}

/// A hole in the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Loss {
    /// Not before.
    pub from: Mono,
    /// Not after.
    pub to: Mono,
    /// Records.
    pub records: u64,
}

/// A ring's indexes as the daemon's own mapping shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Sample {
    /// When.
    pub at: Mono,
    /// Which lane.
    pub lane: LaneId,
    /// The indexes (stable over a double read).
    pub ring: Indexes,
    /// Capacity of the ring, in entries.
    pub capacity: u32,
}

/// Everything about one lane, read within one short interval: ring, queue, threads, ring again.
///
/// The daemon reads in this order: ring, threads, queue, threads' run counts, ring; so equal run counts mean that
/// a thread slept for the whole of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LaneObservation {
    /// Which lane.
    pub lane: LaneId,
    /// When the first thing was read.
    pub begun: Mono,
    /// When the last thing was read.
    pub finished: Mono,
    /// The ring at the beginning.
    pub before: Indexes,
    /// The ring at the end.
    pub after: Indexes,
    /// Capacity of the ring, in entries.
    pub capacity: u32,
    /// The mapping still shows the file that the processes map, in full length.
    pub hub_intact: bool,
    /// Tokens on the consumer's end of the doorbell: `Some(false)` empty, `Some(true)` at least one, `None` if
    /// the queue could not be seen.
    pub token: Option<bool>,
    /// Datagrams queued there if their number is known.
    pub queued: Option<u32>,
    /// The consumer's threads.
    pub consumer: ProcessObservation,
    /// The producer's threads.
    pub producer: ProcessObservation,
    /// What could not be read, in words; empty when all could.
    pub missing: Vec<String>,
    /// Sends on fds that are no socket left no record lately.
    #[cfg_attr(feature = "serde", serde(default))]
    pub failed_sends_unseen: bool,
}

/// A process at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ProcessObservation {
    /// Which; `None` if it is not known who plays this part.
    pub proc: Option<ProcId>,
    /// It is alive (not a zombie, and the same incarnation).
    pub alive: bool,
    /// It has its own end of the lane's doorbell open; `None` if that was not looked at. Only a producer is asked.
    #[cfg_attr(feature = "serde", serde(default))]
    pub has_end: Option<bool>,
    /// Its threads by tid.
    pub threads: Vec<ThreadObservation>,
}

/// A thread at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ThreadObservation {
    /// Which.
    pub tid: Tid,
    /// `comm`, unescaped.
    pub name: String,
    /// State letter of `/proc/PID/stat`: R, S, D, T, t, Z, X, I, P.
    pub state: char,
    /// The system call it blocks in; `None` when it runs, is outside of one, or this could not be read.
    pub syscall: Option<BlockedCall>,
    /// Wait channel of `/proc/PID/wchan`, where the kernel shows it.
    pub wchan: Option<String>,
    /// How often the thread was put on a CPU; equal counts at two times prove that it did not run in between.
    pub runs: Option<u64>,
    /// How often it gave up the CPU by itself; a greater count proves that it slept in between.
    pub sleeps: Option<u64>,
    /// Time on a CPU so far, ns; grows from tick to tick while it runs, so an equal value shows that it did not.
    #[cfg_attr(feature = "serde", serde(default))]
    pub cpu_ns: Option<u64>,
    /// It ran during the observation (run counts before and after differ).
    pub ran_meanwhile: bool,
    /// What it sleeps on, as far as this lane is concerned.
    pub waits_for: WaitsFor,
    /// Where it sleeps; looked at only where a verdict may follow.
    #[cfg_attr(feature = "serde", serde(default))]
    pub stack: Option<Stack>,
}

/// Where a thread sleeps: frames in words, innermost first, and in their place why there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Stack {
    /// In the kernel.
    pub kernel: Vec<String>,
    /// In the program.
    pub user: Vec<String>,
}

/// The system call that a thread blocks in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BlockedCall {
    /// Its number.
    pub number: u16,
    /// Its arguments.
    pub args: [u64; 6],
    /// User stack pointer.
    pub sp: u64,
    /// User instruction pointer.
    pub pc: u64,
}

/// What a thread sleeps on, seen from one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum WaitsFor {
    /// This lane's doorbell: epoll, poll or a receive that a token on the consumer's end ends.
    Doorbell,
    /// epoll, poll or select, but not for this lane's doorbell end (not registered).
    OtherFds,
    /// epoll, poll or select; for what, could not be read.
    SomeFds,
    /// A futex word in the hub file, at this offset in bytes.
    HubFutex(u64),
    /// Another futex: a parked worker, a condition variable, a lock.
    Futex,
    /// Any other system call (wait4, read, nanosleep, ...).
    Other,
    /// It does not sleep in a system call.
    Nothing,
}
