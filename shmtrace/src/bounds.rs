//! Bounds of shmtrace's own: what is beyond them is not looked at, and that is said. `docs/reliability.md` has them all.

use std::{fmt, mem};

use shmtrace_common::{MAX_DOORBELLS, MAX_HUBS_PER_PROCESS, MAX_PROCESSES};

use crate::{
    discover::MAX_HUBS,
    process::{MAX_FDS, MAX_FILE, MAX_THREADS},
    session::MOST_FDS_REMEMBERED,
    sock::MAX_NAMESPACES,
};

/// A bound that was reached, so that a verdict may be missing. `who` is the first process for which it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// More processes than the probes' table holds.
    Processes,
    /// More ends of doorbells than the probes' table holds.
    Doorbells,
    /// More hubs than are followed.
    Hubs {
        /// The first that is not.
        path: String,
    },
    /// A process maps more hubs than the probes read the rings of.
    HubsOfProcess {
        /// Name and pid.
        who: String,
    },
    /// A process has more open files than are looked at.
    Fds {
        /// Name and pid.
        who: String,
    },
    /// A process used more doorbells than are remembered by their fds.
    FdsRemembered,
    /// A process has more threads than are looked at.
    Threads {
        /// Name and pid.
        who: String,
    },
    /// A process has more mappings than are read.
    Mappings {
        /// Name and pid.
        who: String,
    },
    /// More network namespaces than doorbells are asked for in.
    Namespaces,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Processes => write!(
                f,
                "more than {MAX_PROCESSES} processes: those that were started since are not followed; remedy: give \
                 --pid-tree a smaller tree"
            ),
            Self::Doorbells => write!(
                f,
                "more than {MAX_DOORBELLS} ends of doorbells: what is done to the rest leaves no record, so causes may be \
                 unknown"
            ),
            Self::Hubs { path } => write!(
                f,
                "more than {MAX_HUBS} hubs: {path} is not followed, nor are others; remedy: give --pid-tree a smaller tree"
            ),
            Self::HubsOfProcess { who } => write!(
                f,
                "{who} maps more than {MAX_HUBS_PER_PROCESS} hubs: its calls are recorded without the rings of the others, so \
                 causes may be unknown"
            ),
            Self::Fds { who } => write!(
                f,
                "{who} has more than {MAX_FDS} open files: doorbells among the rest are not seen"
            ),
            Self::FdsRemembered => write!(
                f,
                "a process used more than {MOST_FDS_REMEMBERED} sockets: a send on one of the rest that fails since it was \
                 closed is not recognized, so causes may be unknown"
            ),
            Self::Threads { who } => write!(
                f,
                "{who} has more than {MAX_THREADS} threads: the rest counts as running, so no lane that it serves is found \
                 stuck"
            ),
            Self::Mappings { who } => write!(
                f,
                "{who} has more than {} MiB of mappings in /proc/PID/maps: hubs that it maps are not seen",
                MAX_FILE >> 20
            ),
            Self::Namespaces => write!(
                f,
                "more than {MAX_NAMESPACES} network namespaces: doorbells of the others are not seen"
            ),
        }
    }
}

/// Which bounds were reached.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reached(Vec<Bound>);

impl Reached {
    /// Whether this is the first time for a bound of this kind: a tree that is too large must not flood its report.
    pub(crate) fn is_new(&mut self, bound: &Bound) -> bool {
        let kind = mem::discriminant(bound);
        let new = self.0.iter().all(|known| mem::discriminant(known) != kind);
        if new {
            self.0.push(bound.clone());
        }
        new
    }

    /// In words, in the order in which they were reached.
    pub(crate) fn in_words(&self) -> Vec<String> {
        self.0.iter().map(Bound::to_string).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_said_once_for_the_first_that_reaches_it() {
        let mut reached = Reached::default();
        let threads = |who: &str| Bound::Threads { who: who.into() };
        assert!(reached.is_new(&threads("a [1]")));
        assert!(!reached.is_new(&threads("b [2]")));
        assert!(reached.is_new(&Bound::Processes));
        let words = reached.in_words();
        assert_eq!(words.len(), 2);
        assert!(words[0].starts_with("a [1] has more than 4096 threads"));
    }
}
