//! The one record that the probes write.

/// [`Record::flags`]: the indexes of the ring host -> peer in [`Record::rings`] were read.
pub const FLAG_TO_PEER: u8 = 1;
/// [`Record::flags`]: those of the ring peer -> host were.
pub const FLAG_TO_HOST: u8 = 4;
/// [`Record::flags`] of [`Kind::Exit`]: the last thread of its process ended.
pub const FLAG_PROCESS: u8 = 2;
/// [`Record::peer`]: the record belongs to no known peer.
pub const NO_PEER: u16 = u16::MAX;

/// [`Record::syscall`]: outside of a system call, or not read.
pub const NO_SYSCALL: u16 = u16::MAX;

/// What a record tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A send on a doorbell end returned.
    Ring = 1,
    /// A receive on a doorbell end returned a token (or failed otherwise than with EAGAIN).
    Take = 2,
    /// A thread was switched out asleep.
    Sleep = 3,
    /// A wait for fds, or a futex wait on a hub word, returned.
    Wake = 4,
    /// A futex wake on a hub word woke somebody.
    FutexWake = 5,
    /// A process was started; `arg` is its pid.
    Fork = 6,
    /// A process executed another program.
    Exec = 7,
    /// A thread ended.
    Exit = 8,
    /// A shared file mapping was made at `arg`: a hub may have appeared.
    Map = 9,
}

impl Kind {
    /// The kind that a record's byte stands for.
    pub const fn from_u8(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Ring,
            2 => Self::Take,
            3 => Self::Sleep,
            4 => Self::Wake,
            5 => Self::FutexWake,
            6 => Self::Fork,
            7 => Self::Exec,
            8 => Self::Exit,
            9 => Self::Map,
            _ => return None,
        })
    }
}

/// One record, 80 bytes. Any bytes are one, so that the daemon can read them from shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Record {
    /// `CLOCK_MONOTONIC` ns, taken before the record was reserved.
    pub at: u64,
    /// Process id (tgid) in the initial pid namespace.
    pub pid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// A [`Kind`].
    pub kind: u8,
    /// `FLAG_*` bits.
    pub flags: u8,
    /// CPU that wrote it.
    pub cpu: u16,
    /// System call number; [`NO_SYSCALL`] outside of one, and for a ring or take that was seen at its socket and succeeded.
    pub syscall: u16,
    /// Peer id, or [`NO_PEER`].
    pub peer: u16,
    /// The call's result: bytes, ready fds, or a negated errno.
    pub result: i32,
    /// The hub's id as the daemon gave it in [`HubMapping::hub`](crate::HubMapping), where one is concerned.
    pub hub: u32,
    /// Socket inode (ring, take; 0 if there is none), first argument (sleep, wake), offset in the hub (futex wake),
    /// child's pid (fork), address (map).
    pub arg: u64,
    /// The fd of a ring or take that was seen at its call, -1 otherwise.
    pub fd: i32,
    /// [`Record::mark`] of its number once it is complete.
    pub mark: u32,
    /// Head and tail of the ring host -> peer, then of the ring peer -> host; valid with [`FLAG_TO_PEER`] and
    /// [`FLAG_TO_HOST`].
    pub rings: [u64; 4],
}

impl Record {
    /// What the record with this number (of its CPU, from 0) is marked with: never 0, and not what the record at its place
    /// before was marked with.
    pub const fn mark(number: u64) -> u32 {
        number as u32 | 1 << 31
    }
}

const _: () = {
    assert!(size_of::<Record>() == 80);
    assert!(align_of::<Record>() == 8);
    assert!(core::mem::offset_of!(Record, kind) == 16);
    assert!(core::mem::offset_of!(Record, syscall) == 20);
    assert!(core::mem::offset_of!(Record, result) == 24);
    assert!(core::mem::offset_of!(Record, arg) == 32);
    assert!(core::mem::offset_of!(Record, fd) == 40);
    assert!(core::mem::offset_of!(Record, mark) == 44);
    assert!(core::mem::offset_of!(Record, rings) == 48);
};
