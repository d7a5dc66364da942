//! Two programs at one place, so that hardly any call is left out.
//!
//! While a program is preempted, the kernel does not run it for the tasks that have its CPU meanwhile; that is possible at
//! tracepoints from 7.0 on. There, sockets, fork, exec and exit have a spare each, which runs after the first program and
//! does what that was left out of. Both can be preempted, but hardly ever at once: the daemon asks the kernel how often each
//! was left out, and takes what was not made up for as lost records.

use aya_ebpf::{macros::map, maps::Array};
use shmtrace_common::Counter;

use crate::maps::{PREEMPTIBLE, Tally};

/// So many that few threads share an entry.
const THREADS: u32 = 65_536;
/// Beside a thread's number: its spare has been there since.
const DONE: u32 = 1 << 31;

/// The thread that the first program saw to last, by its number modulo the size.
#[map]
static SEEN_TO: Array<u32> = Array::with_max_entries(THREADS, 0);

/// Which of the two programs at a place runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    First,
    Spare,
}

impl Turn {
    /// Whether this program has to see to the current thread's call; of bystanders' calls too, so that it is known exactly
    /// which ones were made up for.
    ///
    /// Where threads share an entry the spare stays out of it: a call that is lost is counted, and one seen twice is not.
    #[inline(always)]
    pub fn is_mine(self, tid: u32) -> bool {
        if PREEMPTIBLE.load() == 0 {
            return true;
        }
        let Some(entry) = SEEN_TO.get_ptr_mut(tid % THREADS) else {
            return self == Self::First;
        };
        // SAFETY: an aligned word that is only accessed whole.
        let seen_to = unsafe { entry.read_volatile() };
        // SAFETY: as above.
        let leave = |word| unsafe { entry.write_volatile(word) };
        match self {
            Self::First => {
                leave(tid);
                true
            }
            Self::Spare if seen_to == tid => {
                leave(tid | DONE);
                false
            }
            Self::Spare if seen_to == tid | DONE || seen_to == 0 => {
                if let Some(tally) = Tally::this_cpu(false) {
                    tally.count(Counter::MadeUp);
                }
                true
            }
            Self::Spare => false,
        }
    }
}
