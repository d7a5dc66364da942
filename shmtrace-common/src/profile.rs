//! What the sampling programs and the daemon share.

/// Version of the sampling ABI, as the name of a global that the loader must set to 1.
pub const PROFILE_ABI_GLOBAL: &str = "PROFILE_ABI_1";
/// Processes of a tree that is sampled.
pub const MAX_SAMPLED_PROCESSES: u32 = 16_384;
/// Different stacks that are kept, 1 KiB each.
pub const MAX_STACKS: u32 = 32_768;
/// Different combinations of process, thread name and stacks.
pub const MAX_PLACES: u32 = 32_768;
/// Threads that are off the CPU at once.
pub const MAX_WAITING: u32 = 16_384;
/// A stack that could not be taken.
pub const NO_STACK: i32 = -1;

/// Where a thread was.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Process id.
    pub pid: u32,
    /// Number of the user's stack, or [`NO_STACK`].
    pub user: i32,
    /// Number of the kernel's stack, or [`NO_STACK`].
    pub kernel: i32,
    /// Zero.
    pub pad: u32,
    /// Name of the thread, filled up with zeroes.
    pub comm: [u8; 16],
}

/// A thread that is off the CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Since when, in ns of `CLOCK_MONOTONIC`.
    pub since: u64,
    /// Where it went to sleep.
    pub place: Place,
}

/// Where the sampling programs find things, set by the loader.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProfileOffsets {
    /// `task_struct.pid`
    pub task_pid: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.__state` (`state` before 5.14)
    pub task_state: u32,
    /// `task_struct.signal`
    pub task_signal: u32,
    /// `signal_struct.live`
    pub signal_live: u32,
}

/// What went wrong, by index in the map of troubles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Trouble {
    /// The table of stacks had another one in that place, or was full.
    StackLost = 0,
    /// The table of places was full.
    PlacesFull = 1,
    /// The table of processes was full.
    ProcessesFull = 2,
    /// The table of waiting threads was full.
    WaitingFull = 3,
}

impl Trouble {
    /// How many there are.
    pub const COUNT: u32 = 4;
}

const _: () = assert!(size_of::<Place>() == 32);
const _: () = assert!(size_of::<Waiting>() == 40);
const _: () = assert!(size_of::<ProfileOffsets>() == 20);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: integers and byte arrays only, without padding (see the sizes above).
    unsafe impl aya::Pod for super::Place {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Waiting {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ProfileOffsets {}
}
