//! Two programs at one place, so that hardly any call is left out.
//!
//! While a program is preempted, the kernel does not run it for the tasks that have its CPU meanwhile; that is possible at
//! tracepoints from 7.0 on. There, each place where calls are counted has a spare, which runs after the first program and
//! does what that was left out of. Both can be preempted, but hardly ever at once: the daemon asks the kernel how often each
//! was left out, and takes what was not made up for as lost records.

use aya_ebpf::{macros::map, maps::Array};
use shmtrace_common::Counter;

use crate::maps::{PREEMPTIBLE, Tally};

/// So many that hardly ever two threads share an entry, and that only matters while one is preempted between two programs.
const THREADS: u32 = 65_536;

/// The thread whose call the first program has seen to, by its number modulo the size; 0 for none.
#[map]
static SEEN_TO: Array<u32> = Array::with_max_entries(THREADS, 0);

/// Which of the two programs at a place runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    First,
    Spare,
}

impl Turn {
    /// Whether this program has to see to this thread's call; of bystanders' calls too, so that it is known exactly which
    /// ones were made up for.
    #[inline(always)]
    pub fn is_mine(self, tid: u32) -> bool {
        if PREEMPTIBLE.load() == 0 {
            return true;
        }
        let Some(entry) = SEEN_TO.get_ptr_mut(tid % THREADS) else {
            return true;
        };
        // SAFETY: an aligned word; both programs run in the thread itself, one after the other.
        unsafe {
            match self {
                Self::First => {
                    entry.write_volatile(tid);
                    true
                }
                Self::Spare if entry.read_volatile() == tid => {
                    entry.write_volatile(0);
                    false
                }
                Self::Spare => {
                    if let Some(tally) = Tally::this_cpu(false) {
                        tally.count(Counter::MadeUp);
                    }
                    true
                }
            }
        }
    }
}
