//! Values of the maps that the daemon fills and the probes read, and the counters that go the other way.

/// Processes of the tree that can be followed at once; more are counted in [`Counter::ProcessesFull`].
pub const MAX_PROCESSES: u32 = 16_384;
/// Entries of the table that tells bystanders by their pid, modulo this: not 0 where a process of the tree was.
pub const PID_SLOTS: u32 = 8_192;
/// Sockets that can be told apart at once: two ends for 32 peers of 16 hubs, and as many that are no doorbells.
pub const MAX_DOORBELLS: u32 = 2_048;
/// Fds that the probes remember at once; the least used are forgotten first.
pub const MAX_KNOWN_FDS: u32 = 16_384;
/// Hubs that one process can map and still have its ring indexes read by the probes.
pub const MAX_HUBS_PER_PROCESS: usize = 4;

/// [`Process::flags`]: it maps a hub or holds a doorbell, so its sleeps and waits are recorded.
pub const PROC_PARTICIPANT: u32 = 1;

/// [`Doorbell::side`]: the host's end.
pub const SIDE_HOST: u16 = 0;
/// [`Doorbell::side`]: the plugin's end.
pub const SIDE_PLUGIN: u16 = 1;
/// [`Doorbell::side`]: a socket that is known to be no doorbell.
pub const SIDE_IGNORED: u16 = 2;

/// Where a process maps a hub.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HubMapping {
    /// The daemon's id of the hub, from 1; 0 = no entry.
    pub hub: u32,
    /// Zero.
    pub pad: u32,
    /// Address in the process at which offset 0 of the file is mapped.
    pub base: u64,
    /// Bytes mapped from there.
    pub len: u64,
}

/// A process of the tree; key: its pid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Process {
    /// `PROC_*` bits.
    pub flags: u32,
    /// Slot of the doorbell it used last plus one, 0 = none yet. Written by the probes.
    pub last_doorbell: u32,
    /// Time at which this image of the process began (fork, exec or entry into the table), ns. What was remembered
    /// of its fds before is void.
    pub image: u64,
    /// Hubs that it maps.
    pub hubs: [HubMapping; MAX_HUBS_PER_PROCESS],
}

/// A socket that is one end of a doorbell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Doorbell {
    /// The socket's inode.
    pub inode: u64,
    /// Address of the hub in the process that used this end last. Written by the probes, as is `seal`.
    pub base: u64,
    /// `base` combined with the image of that process, so that only it can use it; see `fds::recent` of the probes.
    pub seal: u64,
    /// The daemon's id of the hub.
    pub hub: u32,
    /// Peer id.
    pub peer: u16,
    /// One of `SIDE_*`.
    pub side: u16,
    /// Offset of the ring host -> peer in the hub file, bytes.
    pub to_peer: u64,
    /// Offset of the ring peer -> host in the hub file, bytes.
    pub to_host: u64,
}

/// An fd of a process; key of what the probes remember of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FdKey {
    /// Process id.
    pub pid: u32,
    /// File descriptor.
    pub fd: u32,
}

/// What the probes remember of an fd, so that they need not follow seven pointers for each call. Voided by close, dup
/// and exec, and by each [`Process::image`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct KnownFd {
    /// [`Process::image`] at that time.
    pub image: u64,
    /// The socket's inode; 0 if it is no socket that matters.
    pub inode: u64,
    /// Its slot among the doorbells; without meaning if `inode` is 0.
    pub slot: u32,
    /// Epoch of the sockets' table at that time: a socket that did not matter then may matter now.
    pub epoch: u32,
}

/// Where one CPU's records begin and end. Both count records since the start; number n lies at n modulo the room, and is
/// complete when it bears its [`mark`](crate::Record::mark).
///
/// Its writer is the CPU, its reader the daemon, which maps it; each has a cache line of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Cursor {
    /// Records begun.
    pub head: u64,
    /// Records that found no place; those of a CPU without a cursor are counted at the first one.
    pub lost: u64,
    /// Zero.
    pub pad: [u64; 6],
    /// Records read.
    pub tail: u64,
    /// 1 while the daemon rests: the next record is to wake it. Set by the daemon, reset by both.
    pub resting: u64,
    /// Zero.
    pub pad_behind: [u64; 6],
}

/// Offsets of kernel structure fields on the running kernel, from its BTF, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct KernelOffsets {
    /// `task_struct.files`
    pub task_files: u32,
    /// `task_struct.pid`
    pub task_pid: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.signal`
    pub task_signal: u32,
    /// `task_struct.self_exec_id`
    pub task_exec_id: u32,
    /// `task_struct.__state` (`state` before 5.14)
    pub task_state: u32,
    /// `signal_struct.live`
    pub signal_live: u32,
    /// `files_struct.fdt`
    pub files_fdt: u32,
    /// `fdtable.max_fds`
    pub fdt_max_fds: u32,
    /// `fdtable.fd`
    pub fdt_fd: u32,
    /// `file.f_inode`
    pub file_inode: u32,
    /// `inode.i_ino`
    pub inode_ino: u32,
    /// `sock.sk_socket`
    pub sock_socket: u32,
    /// `socket.file`
    pub socket_file: u32,
}

/// What the probes count, per CPU. For calls of interest in the tree:
/// `Calls = Records of calls + Dropped of calls + the Filtered… counters`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Calls of interest that returned in a process of the tree.
    Calls,
    /// Records written for calls.
    CallRecords,
    /// Records of calls that found no room.
    CallDrops,
    /// Other records (sleeps, forks, ...) written.
    OtherRecords,
    /// Other records that found no room.
    OtherDrops,
    /// Sends and receives on something that is no doorbell.
    FilteredForeign,
    /// Receives on a doorbell that found nothing, or only peeked.
    FilteredEmpty,
    /// Futex calls on words outside of hubs, and wakes that woke nobody.
    FilteredFutex,
    /// Waits for fds of processes without a doorbell, and polls that found nothing and did not wait.
    FilteredWait,
    /// Ring indexes that could not be read.
    RingFaults,
    /// Processes that could not be followed because the table is full.
    ProcessesFull,
    /// Calls that a spare saw to, since the program before it was left out, bystanders' among them.
    MadeUp,
}

impl Counter {
    /// Number of counters.
    pub const COUNT: usize = 12;
}

/// All counters of one CPU, indexed by [`Counter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Counters(pub [u64; Counter::COUNT]);

const _: () = {
    assert!(size_of::<HubMapping>() == 24);
    assert!(size_of::<Process>() == 16 + 24 * MAX_HUBS_PER_PROCESS);
    assert!(size_of::<KnownFd>() == 24);
    assert!(size_of::<Doorbell>() == 48);
    assert!(size_of::<Cursor>() == 128);
    assert!(core::mem::offset_of!(Cursor, tail) == 64);
    assert!(size_of::<KernelOffsets>() == 56);
    assert!(Counter::MadeUp as usize + 1 == Counter::COUNT);
};

#[cfg(feature = "user")]
mod pod {
    use super::{Counters, Doorbell, KernelOffsets, Process};

    // SAFETY: `repr(C)`, integers only, without padding (sizes asserted above).
    unsafe impl aya::Pod for Process {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Doorbell {}
    // SAFETY: as above.
    unsafe impl aya::Pod for KernelOffsets {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Counters {}
}
