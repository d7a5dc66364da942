//! The symptom table applied: what the numbers of a dump mean, in one line each.
//!
//! Unlike a watch this is no proof over time, only two looks: it says "looks like" by saying what it saw.

use shm_transport::layout::peer;
use shmtrace_engine::input::{LaneObservation, ProcessObservation, ThreadObservation, WaitsFor};

use super::{Dumped, DumpedPeer};
use crate::report::syscall_name;

/// Slots in flight from which on they are worth a word although entries refer to them.
const MANY_SLOTS: u32 = 16;

/// What the consumer of a lane does.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Consumer {
    /// Not known, or not to be seen.
    Unknown,
    Gone,
    Stopped,
    /// It runs, or ran between the looks.
    Awake,
    /// Asleep, and some thread waits for fds (or on the doorbell itself).
    AsleepInPoll,
    /// Asleep in other calls only.
    Blocked(String),
}

/// Every line for one hub, peers in order; never empty.
pub(super) fn interpret(dumped: &Dumped) -> Vec<String> {
    let mut lines = Vec::new();
    // The host is the same for all peers.
    if let (Some((pid, _)), Some(first)) = (&dumped.host, dumped.peers.first()) {
        lines.extend(stopped_line("host", *pid, &first.to_host[1].consumer));
    }
    for peer in &dumped.peers {
        lines.extend(peer_lines(peer));
    }
    lines.extend(slot_lines(dumped));
    lines.extend(dumped.hub.violations.iter().map(|violation| {
        let lane = violation.lane.map_or_else(String::new, |lane| {
            format!("peer[{}] {}: ", lane.peer.0, lane.direction)
        });
        format!(
            "{lane}{} -> the hub is damaged: single producer broken, or overwritten",
            violation.what
        )
    }));
    let lanes = || {
        dumped
            .peers
            .iter()
            .flat_map(|peer| [&peer.to_peer, &peer.to_host])
    };
    let empty = lanes().all(|lane| lane[1].after.is_empty());
    let moved = lanes().any(|[earlier, later]| earlier.before != later.after);
    if empty && !moved && dumped.hub.all_asleep == Some(true) {
        lines.push(
            "all rings are empty, everybody sleeps, and nothing moved between the two looks -> nothing to do; if the \
             host waits for an answer, it never enqueued the call, or enqueued it for another peer, or a plugin lost it"
                .into(),
        );
    } else if lines.is_empty() {
        lines.push("nothing is stuck: what was enqueued was taken between the two looks".into());
    }
    lines
}

fn peer_lines(peer: &DumpedPeer) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(plugin) = peer.binding.plugin {
        let who = format!("peer[{}]", peer.binding.peer.0);
        lines.extend(stopped_line(&who, plugin.pid, &peer.to_peer[1].consumer));
    }
    if peer.gone && peer.flags & peer::FLAG_ACTIVE != 0 {
        lines.push(format!(
            "peer[{}]: its process is gone and its entry is still ACTIVE -> the host waits for nobody: a dead peer sends no end",
            peer.binding.peer.0
        ));
    }
    for (lanes, ring, who) in [
        (&peer.to_peer, "recv_ring", "plugin"),
        (&peer.to_host, "send_ring", "host"),
    ] {
        let nobody = peer.gone && who == "plugin";
        lines.extend(lane_line(peer.binding.peer.0, lanes, ring, who, nobody));
    }
    lines
}

/// A process that a signal or a debugger has stopped.
fn stopped_line(who: &str, pid: u32, process: &ProcessObservation) -> Option<String> {
    is_stopped(process).then(|| {
        format!("{who} is stopped -> it does nothing until it is continued: `kill -CONT {pid}`, or its debugger")
    })
}

fn is_stopped(process: &ProcessObservation) -> bool {
    process
        .threads
        .iter()
        .any(|thread| matches!(thread.state, 'T' | 't'))
}

fn lane_line(
    peer: u16,
    [earlier, later]: &[LaneObservation; 2],
    ring: &str,
    who: &str,
    nobody: bool,
) -> Option<String> {
    let len = later.after.len();
    let moved = earlier.before != later.after;
    let pending = later.token;
    let consumer = if nobody {
        Consumer::Gone
    } else {
        consumer(earlier, later)
    };
    if len == 0 {
        return (pending == Some(true) && !moved && matches!(consumer, Consumer::AsleepInPoll | Consumer::Blocked(_)))
            .then(|| {
                format!(
                    "peer[{peer}] {ring}: doorbell_pending > 0 on a sleeping {who} -> the {who} does not drain its doorbell \
                     (the ring is empty, so nothing is lost by it)"
                )
            });
    }
    let seen = format!("peer[{peer}] {ring}: len={len}");
    if moved {
        return Some(format!(
            "{seen}, and it moves -> data waiting, being worked on"
        ));
    }
    let full = if len >= u64::from(later.capacity) {
        " (ring full: the producer waits for space)"
    } else {
        ""
    };
    let meaning = match (&consumer, pending) {
        (Consumer::AsleepInPoll, Some(false)) => {
            format!(
                "doorbell_pending=0, {who} asleep -> missed wakeup: the doorbell's signal was lost"
            )
        }
        (Consumer::AsleepInPoll, Some(true)) => {
            format!("doorbell_pending > 0, {who} asleep -> the {who} does not drain its doorbell")
        }
        (Consumer::AsleepInPoll, None) => {
            format!("{who} asleep -> stuck; its doorbell's queue could not be seen")
        }
        (Consumer::Blocked(call), _) => {
            format!(
                "{who} asleep in {call} -> a blocking call on the runtime's thread keeps it from its doorbell"
            )
        }
        (Consumer::Gone, _) => format!("{who} is gone -> entries that nobody will take"),
        (Consumer::Stopped, _) => {
            format!("{who} is stopped -> data waiting; it goes on with SIGCONT")
        }
        (Consumer::Awake, _) => format!("{who} runs -> data waiting"),
        (Consumer::Unknown, _) => {
            format!("it could not be seen what the {who} does -> data waiting")
        }
    };
    Some(format!("{seen}{full}, {meaning}"))
}

fn consumer(earlier: &LaneObservation, later: &LaneObservation) -> Consumer {
    let process = &later.consumer;
    if process.proc.is_some() && !process.alive {
        return Consumer::Gone;
    }
    if process.threads.is_empty() {
        return Consumer::Unknown;
    }
    if is_stopped(process) {
        return Consumer::Stopped;
    }
    if process
        .threads
        .iter()
        .any(|thread| thread.state != 'S' || ran(&earlier.consumer, thread))
    {
        return Consumer::Awake;
    }
    let polls = |thread: &&ThreadObservation| {
        matches!(
            thread.waits_for,
            WaitsFor::Doorbell | WaitsFor::OtherFds | WaitsFor::SomeFds
        )
    };
    if process.threads.iter().any(|thread| polls(&thread)) {
        return Consumer::AsleepInPoll;
    }
    let calls: std::collections::BTreeSet<String> = process
        .threads
        .iter()
        .filter_map(|thread| thread.syscall.as_ref())
        .map(|call| syscall_name(call.number))
        .collect();
    if calls.is_empty() {
        // Without the right to see system calls it cannot be told.
        return Consumer::Unknown;
    }
    Consumer::Blocked(calls.into_iter().collect::<Vec<_>>().join(", "))
}

/// The thread ran since the earlier look, or is new.
fn ran(earlier: &ProcessObservation, thread: &ThreadObservation) -> bool {
    let before = earlier
        .threads
        .iter()
        .find(|before| before.tid == thread.tid);
    thread.ran_meanwhile || before.is_none_or(|before| before.runs != thread.runs)
}

fn slot_lines(dumped: &Dumped) -> Vec<String> {
    let mut lines = Vec::new();
    let stuck = dumped
        .hub
        .orphans
        .iter()
        .filter(|slot| dumped.earlier.orphans.contains(slot))
        .count();
    if stuck > 0 {
        lines.push(format!(
            "{stuck} slots in flight that no waiting entry refers to, the same at both looks -> messages stuck in transit, \
             or still being worked on by whoever took them"
        ));
    }
    for (number, class) in dumped.hub.classes.iter().enumerate() {
        if class.total > 0 && class.free == 0 {
            lines.push(format!(
                "class[{number}] has no free slot -> senders of that size wait, or use larger slots"
            ));
        } else if class.in_flight >= MANY_SLOTS && class.in_flight * 2 > class.total {
            lines.push(format!(
                "class[{number}]: {} slots in flight -> messages stuck in transit",
                class.in_flight
            ));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use shmtrace_engine::{
        Direction, HubId, LaneId, Mono, PeerId, ProcId, Tid,
        input::{BlockedCall, Indexes},
    };

    use super::*;

    fn thread(state: char, waits_for: WaitsFor, runs: u64) -> ThreadObservation {
        ThreadObservation {
            tid: Tid(7),
            name: "x".into(),
            state,
            syscall: Some(BlockedCall {
                number: u16::try_from(libc::SYS_wait4).unwrap(),
                args: [0; 6],
                sp: 0,
                pc: 0,
            }),
            wchan: None,
            runs: Some(runs),
            sleeps: Some(1),
            cpu_ns: None,
            ran_meanwhile: false,
            waits_for,
            stack: None,
        }
    }

    fn lane(head: u64, token: bool, thread: ThreadObservation) -> LaneObservation {
        let indexes = Indexes { head, tail: 40 };
        LaneObservation {
            lane: LaneId {
                hub: HubId(1),
                peer: PeerId(3),
                direction: Direction::ToPeer,
            },
            begun: Mono(0),
            finished: Mono(1),
            before: indexes,
            after: indexes,
            capacity: 256,
            hub_intact: true,
            token: Some(token),
            queued: Some(u32::from(token)),
            consumer: ProcessObservation {
                proc: Some(ProcId { pid: 7, start: 1 }),
                alive: true,
                has_end: None,
                threads: vec![thread],
            },
            producer: ProcessObservation::default(),
            missing: Vec::new(),
            failed_sends_unseen: false,
        }
    }

    /// What is said when nothing changes between the looks.
    fn said(head: u64, token: bool, thread: &ThreadObservation) -> String {
        let lanes = [
            lane(head, token, thread.clone()),
            lane(head, token, thread.clone()),
        ];
        lane_line(3, &lanes, "recv_ring", "plugin", false).unwrap_or_default()
    }

    #[test]
    fn every_row_of_the_table() {
        let asleep = thread('S', WaitsFor::Doorbell, 5);
        assert_eq!(
            said(41, false, &asleep),
            "peer[3] recv_ring: len=1, doorbell_pending=0, plugin asleep -> missed wakeup: the doorbell's signal was lost"
        );
        assert!(said(41, true, &asleep).contains("does not drain its doorbell"));
        assert!(said(40, true, &asleep).contains("nothing is lost by it"));
        assert_eq!(said(40, false, &asleep), "");
        assert!(said(40 + 256, false, &asleep).contains("ring full"));
        assert!(said(41, true, &thread('S', WaitsFor::Other, 5)).contains("asleep in wait4"));
        assert!(said(41, true, &thread('T', WaitsFor::Nothing, 5)).contains("SIGCONT"));
        assert!(said(41, true, &thread('R', WaitsFor::Nothing, 5)).contains("plugin runs"));
    }

    #[test]
    fn a_peer_that_nobody_can_be_is_gone() {
        let nobody = lane(41, false, thread('S', WaitsFor::Doorbell, 5));
        let lanes = [nobody.clone(), nobody];
        assert_eq!(
            lane_line(3, &lanes, "recv_ring", "plugin", true).unwrap(),
            "peer[3] recv_ring: len=1, plugin is gone -> entries that nobody will take"
        );
    }

    #[test]
    fn what_is_stopped_is_said_to_be_with_its_remedy() {
        let stopped = lane(40, false, thread('T', WaitsFor::Nothing, 5)).consumer;
        assert!(
            stopped_line("host", 7, &stopped)
                .unwrap()
                .contains("kill -CONT 7")
        );
        let asleep = lane(40, false, thread('S', WaitsFor::Doorbell, 5)).consumer;
        assert_eq!(stopped_line("host", 7, &asleep), None);
    }

    #[test]
    fn what_moves_is_not_stuck() {
        let asleep = thread('S', WaitsFor::Doorbell, 5);
        let lanes = [lane(41, false, asleep.clone()), lane(42, false, asleep)];
        assert!(
            lane_line(3, &lanes, "recv_ring", "plugin", false)
                .unwrap()
                .contains("it moves")
        );
        // Nor is what slept twice and ran in between.
        let lanes = [
            lane(41, false, thread('S', WaitsFor::Doorbell, 5)),
            lane(41, false, thread('S', WaitsFor::Doorbell, 6)),
        ];
        assert!(
            lane_line(3, &lanes, "recv_ring", "plugin", false)
                .unwrap()
                .contains("plugin runs")
        );
    }
}
