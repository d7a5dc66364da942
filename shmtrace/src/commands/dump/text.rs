//! A dump for people: the block that the SIGUSR1 handler prints, then what it does not show, then what it means.

use std::{
    fmt::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

use shmtrace_engine::input::{
    ClassObservation, LaneObservation, ProcessObservation, ThreadObservation, WaitsFor,
};

use super::{Dumped, DumpedPeer, interpret};
use crate::{
    commands::inspect::{peer_flags, seconds},
    discover::Discovery,
    observe::stack::Names,
    report::{printable, syscall_name},
};

/// The whole text. Writing into a `String` cannot fail.
pub(super) fn render(dumped: &Dumped, discovery: &Discovery) -> String {
    let mut text = String::new();
    let host = match &dumped.host {
        Some((pid, name)) => format!("host {pid} ({})", printable(name)),
        None => "host not in the tree".into(),
    };
    let _infallible = writeln!(text, "hub {}: {host}", printable(&dumped.path));
    text.push_str(&diagnostics(&dumped.hub.classes, &dumped.peers));
    text.push_str("peers:\n");
    for peer in &dumped.peers {
        text.push_str(&peer_lines(peer));
    }
    let names = Names::new();
    text.push_str("threads:\n");
    // The host is the same for all peers: what it waits for is said for the first.
    if let (Some((pid, name)), Some(first)) = (&dumped.host, dumped.peers.first()) {
        text.push_str(&process_lines(
            &format!("host {pid} ({})", printable(name)),
            &first.to_host[1].consumer,
            discovery,
            &names,
        ));
    }
    for peer in &dumped.peers {
        let who = match peer.binding.plugin {
            Some(plugin) => format!(
                "peer[{}] {} ({})",
                peer.binding.peer.0,
                plugin.pid,
                printable(&peer.binding.name)
            ),
            None if peer.to_peer[1].consumer.threads.is_empty() => {
                let what = if peer.gone { "gone" } else { "not known which" };
                let _infallible = writeln!(
                    text,
                    "  peer[{}]: its process is {what}",
                    peer.binding.peer.0
                );
                continue;
            }
            None => format!("peer[{}], any of these", peer.binding.peer.0),
        };
        text.push_str(&process_lines(
            &who,
            &peer.to_peer[1].consumer,
            discovery,
            &names,
        ));
    }
    text.push_str("interpretation:\n");
    for line in interpret::interpret(dumped) {
        let _infallible = writeln!(text, "  {}", printable(&line));
    }
    text
}

/// Exactly as the handler prints it.
fn diagnostics(classes: &[ClassObservation], peers: &[DumpedPeer]) -> String {
    let sum = |of: fn(&ClassObservation) -> u32| classes.iter().map(of).sum::<u32>();
    let mut text = String::from("--- Hub Transport Diagnostics ---\n");
    let _infallible = writeln!(
        text,
        "HubAllocator slots: {} total, {} free, {} allocated, {} in_flight",
        sum(|class| class.total),
        sum(|class| class.free),
        sum(|class| class.allocated),
        sum(|class| class.in_flight)
    );
    for (number, class) in classes.iter().enumerate() {
        let _infallible = writeln!(
            text,
            "  class[{number}] ({:>7}B): {} total, {} free, {} allocated, {} in_flight",
            class.slot_size, class.total, class.free, class.allocated, class.in_flight
        );
    }
    for peer in peers {
        let ring = |lane: &LaneObservation| {
            let ring = lane.after;
            format!(
                "head={} tail={} len={}/{}",
                ring.head,
                ring.tail,
                ring.len(),
                lane.capacity
            )
        };
        let _infallible = writeln!(
            text,
            "  peer[{}] \"{}\": recv_ring({}) send_ring({}) doorbell_pending={}",
            peer.binding.peer.0,
            printable(&peer.binding.name),
            ring(&peer.to_peer[1]),
            ring(&peer.to_host[1]),
            pending(&peer.to_peer[1])
        );
    }
    text.push_str("--- End Hub Diagnostics ---\n");
    text
}

fn pending(lane: &LaneObservation) -> String {
    match (lane.queued, lane.token) {
        (Some(number), _) => number.to_string(),
        (None, Some(true)) => ">0".into(),
        _ => "?".into(),
    }
}

fn peer_lines(peer: &DumpedPeer) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos();
    let age = match u64::try_from(now)
        .unwrap_or(u64::MAX)
        .checked_sub(peer.last_seen)
    {
        _ if peer.last_seen == 0 => "no heartbeat".to_owned(),
        Some(age) => format!("heartbeat {} ago", seconds(age)),
        None => "heartbeat in the future".to_owned(),
    };
    let pid = match peer.binding.plugin {
        Some(plugin) => format!("pid {}", plugin.pid),
        None if peer.gone => "process gone".to_owned(),
        None => "process not known".to_owned(),
    };
    let mut text = format!(
        "  peer[{}] {pid}: {}, {age}, pending: plugin's end {}, host's end {}\n",
        peer.binding.peer.0,
        peer_flags(peer.flags).join("|"),
        pending(&peer.to_peer[1]),
        pending(&peer.to_host[1]),
    );
    let mut missing: Vec<&String> = peer.to_peer[1]
        .missing
        .iter()
        .chain(&peer.to_host[1].missing)
        .collect();
    missing.sort();
    missing.dedup();
    if peer.gone {
        // Of course: there is nobody.
        missing.clear();
    }
    for problem in missing {
        let _infallible = writeln!(text, "    ({})", printable(problem));
    }
    text
}

fn process_lines(
    who: &str,
    process: &ProcessObservation,
    discovery: &Discovery,
    names: &Names,
) -> String {
    let mut text = format!("  {who}{}\n", if process.alive { "" } else { ": gone" });
    for thread in &process.threads {
        let _infallible = writeln!(text, "    {}", thread_line(thread));
        for frame in kernel_stack(process, thread, discovery) {
            let _infallible = writeln!(text, "        {}", printable(&frame));
        }
        let incarnation = process.proc.and_then(|id| discovery.process(id));
        if let (Some(incarnation), Some(call)) = (incarnation, &thread.syscall) {
            for frame in names.user_stack(incarnation, call) {
                let _infallible = writeln!(text, "        {}", printable(&frame));
            }
        }
    }
    text
}

fn thread_line(thread: &ThreadObservation) -> String {
    let call = match &thread.syscall {
        Some(call) => {
            let args: Vec<String> = call
                .args
                .iter()
                .take(4)
                .map(|argument| format!("{argument:#x}"))
                .collect();
            format!(
                " in {}({}, ...)",
                syscall_name(call.number),
                args.join(", ")
            )
        }
        None if thread.state == 'R' => String::new(),
        None => " outside of a system call, or not to be seen".into(),
    };
    let channel = thread.wchan.as_deref().map_or_else(String::new, |channel| {
        format!(", at {}", printable(channel))
    });
    let waits = match thread.waits_for {
        WaitsFor::Doorbell => ", waits for its doorbell",
        WaitsFor::OtherFds => ", does not wait for this doorbell",
        WaitsFor::HubFutex(_) => ", waits on a futex of the hub",
        _ => "",
    };
    format!(
        "{} \"{}\" {}{call}{channel}{waits}",
        thread.tid.0,
        printable(&thread.name),
        thread.state
    )
}

/// Kernel frames of a sleeping thread, innermost first; only root may see them.
fn kernel_stack(
    process: &ProcessObservation,
    thread: &ThreadObservation,
    discovery: &Discovery,
) -> Vec<String> {
    let stack = process
        .proc
        .and_then(|id| discovery.process(id))
        .and_then(|process| process.kernel_stack(thread.tid));
    let frames = stack.unwrap_or_default();
    if frames.is_empty() {
        frames
    } else {
        vec![format!("kernel: {}", frames.join(" < "))]
    }
}
