//! Text for people: findings with their evidence, one line per event, a status line on a terminal.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use owo_colors::OwoColorize as _;
use shmtrace_engine::{
    Finding, ProcId, State,
    input::{Event, EventKind, Indexes, PeerRings, ThreadObservation, WaitsFor},
};

use super::{Header, Report, StatusLine, WallClock, errno_name, json::lane_words, syscall_name};
use crate::session::{Directory, Totals};

/// Events of a finding's timeline that are shown.
const TIMELINE: usize = 12;

/// Writes text; colours are taken out by the stream where they are not wanted.
pub struct Text<W> {
    out: W,
    clock: WallClock,
    quiet: bool,
    status: StatusLine,
}

impl<W: Write> Text<W> {
    /// Writes to `out`; `quiet` leaves only findings.
    pub fn new(out: W, clock: WallClock, quiet: bool) -> Self {
        Self {
            out,
            clock,
            quiet,
            status: StatusLine::new(!quiet),
        }
    }

    fn print(&mut self, text: &str) -> io::Result<()> {
        self.status.clear()?;
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }
}

impl<W: Write> Report for Text<W> {
    fn header(&mut self, header: &Header) -> io::Result<()> {
        if self.quiet {
            return Ok(());
        }
        let roots: Vec<String> = header.roots.iter().map(u32::to_string).collect();
        let mut text = format!(
            "shmtrace {}: watching {} and all descendants, grace {}, kernel {}\n",
            env!("CARGO_PKG_VERSION"),
            roots.join(", "),
            duration(header.grace_ns),
            printable(&header.kernel),
        );
        for limit in &header.limits {
            let _infallible = writeln!(text, "  limited here: {limit}");
        }
        self.print(&text)
    }

    fn finding(&mut self, finding: &Finding, names: &Directory) -> io::Result<()> {
        let text = self.finding_text(finding, names);
        self.print(&text)
    }

    fn event(&mut self, event: &Event, names: &Directory) -> io::Result<()> {
        let line = format!(
            "{} {}\n",
            self.clock.rfc3339(event.at),
            event_words(event, names)
        );
        self.print(&line)
    }

    fn summary(&mut self, totals: &Totals, names: &Directory) -> io::Result<()> {
        self.status.clear()?;
        if self.quiet {
            return Ok(());
        }
        let mut found: Vec<String> = totals
            .findings
            .iter()
            .map(|(code, count)| format!("{count} {}", code.as_str()))
            .collect();
        if totals.masked > 0 {
            found.push(format!("{} masked", totals.masked));
        }
        if totals.inconclusive > 0 {
            found.push(format!("{} inconclusive", totals.inconclusive));
        }
        let found = if found.is_empty() {
            "no findings".to_owned()
        } else {
            found.join(", ")
        };
        let canary = match totals.canary {
            Some(count) if count.planted > 0 || count.was_blind => format!(
                "; canary found {} of {} times{}",
                count.found,
                count.planted,
                if count.was_blind { ": BLIND" } else { "" }
            ),
            _ => String::new(),
        };
        let limits = if totals.limits.is_empty() {
            ""
        } else {
            "; not all was seen, since a limit was reached (see above)"
        };
        let text = format!(
            "{found} in {}; {} peers, {} events, {} lost{canary}{limits}\n",
            duration(totals.duration_ns),
            names.peers().count(),
            totals.events,
            totals.lost,
        );
        self.print(&text)
    }

    fn leave_terminal(&mut self) {
        self.status = StatusLine::new(false);
    }

    fn note(&mut self, note: &str) -> io::Result<()> {
        self.status.clear()?;
        writeln!(anstream::stderr(), "shmtrace: {}", printable(note))
    }

    fn alive(&mut self, totals: &Totals, names: &Directory) -> io::Result<()> {
        if !self.status.is_wanted() {
            return Ok(());
        }
        let oldest = totals
            .oldest_waiting_ns
            .map_or_else(|| "none".to_owned(), duration);
        let blind = totals.canary.is_some_and(|count| count.is_blind);
        self.status.show(&format!(
            "{}{}{} peers | {} events/s | {} lost | oldest waiting entry: {oldest}",
            if blind { "BLIND | " } else { "" },
            if totals.limits.is_empty() {
                ""
            } else {
                "LIMIT REACHED | "
            },
            names.peers().filter(|peer| peer.plugin.is_some()).count(),
            totals.events_per_second,
            totals.lost,
        ))
    }
}

impl<W> Text<W> {
    fn finding_text(&self, finding: &Finding, names: &Directory) -> String {
        let mut text = String::new();
        let cause = finding
            .cause
            .map(|cause| format!(" ({})", cause.as_str()))
            .unwrap_or_default();
        let title = format!(
            "{} {}{cause}",
            finding.state.as_str().to_uppercase(),
            finding.code.as_str()
        );
        let title = match finding.state {
            State::Missed => title.red().bold().to_string(),
            State::Masked | State::Suspect | State::Inconclusive => {
                title.yellow().bold().to_string()
            }
            State::Recovered | State::Ended => title.green().bold().to_string(),
        };
        let name = finding
            .hub
            .zip(finding.peer)
            .and_then(|(hub, peer)| names.peer(hub, peer))
            .map(|p| printable(&p.name));
        let place = match (finding.lane, finding.peer) {
            (Some(lane), _) => format!(" on {}", lane_words(lane, name.as_deref())),
            (None, Some(peer)) => format!(" at peer {} {}", peer.0, name.unwrap_or_default()),
            (None, None) => String::new(),
        };
        let _infallible = writeln!(text, "f{} {title}{place}", finding.id);
        let mut line = |label: &str, value: &str| {
            let _infallible = writeln!(text, "  {:<9} {value}", label.dimmed().to_string());
        };
        line(
            "time",
            &format!(
                "{}, {} for {}",
                self.clock.rfc3339(finding.at),
                word_of(finding.state),
                duration(finding.stuck_ns)
            ),
        );
        if let Some(hub) = finding.hub.and_then(|hub| names.hub(hub)) {
            let host = finding
                .host
                .map(|host| format!(", host {}", who(host, names)))
                .unwrap_or_default();
            let plugin = finding
                .plugin
                .map(|plugin| format!(", plugin {}", who(plugin, names)))
                .unwrap_or_default();
            line("hub", &format!("{}{host}{plugin}", printable(hub)));
        }
        if let Some(ring) = finding.ring {
            let capacity = finding
                .capacity
                .map(|capacity| format!("/{capacity}"))
                .unwrap_or_default();
            let queue = match finding.doorbell_pending {
                Some(pending) => format!("doorbell_pending={pending}"),
                None => "doorbell queue not seen".to_owned(),
            };
            line(
                "ring",
                &format!(
                    "head={} tail={} len={}{capacity}, {queue}",
                    ring.head,
                    ring.tail,
                    ring.len()
                ),
            );
        }
        for (proc, thread) in &finding.threads {
            line("thread", &thread_words(*proc, thread, names));
            for (what, frames) in thread
                .stack
                .iter()
                .flat_map(|stack| [("kernel", &stack.kernel), ("user", &stack.user)])
            {
                for frame in frames {
                    line("", &format!("  {what} {}", printable(frame)));
                }
            }
        }
        let skipped = finding.timeline.len().saturating_sub(TIMELINE);
        let shown = &finding.timeline[skipped..];
        if let Some(end) = shown.last() {
            line(
                "timeline",
                &format!("(times before the last of these {} events)", shown.len()),
            );
            for event in shown {
                line(
                    "",
                    &format!(
                        "-{:>12} {}",
                        duration(end.at.since(event.at)),
                        event_words(event, names)
                    ),
                );
            }
        }
        line("rule", finding.rule);
        if let Some(note) = &finding.note {
            line("note", &printable(note));
        }
        if finding.count > 1 {
            line(
                "count",
                &format!("{} times on this lane so far", finding.count),
            );
        }
        line("meaning", &printable(&finding.explanation));
        text
    }
}

fn word_of(state: State) -> &'static str {
    match state {
        State::Suspect | State::Missed | State::Inconclusive => "stuck",
        State::Masked | State::Recovered | State::Ended => "was stuck",
    }
}

fn who(proc: ProcId, names: &Directory) -> String {
    format!("{} [{}]", printable(&names.process(proc)), proc.pid)
}

fn thread_words(proc: ProcId, thread: &ThreadObservation, names: &Directory) -> String {
    let call = match thread.syscall {
        Some(call) => {
            let args: Vec<String> = call
                .args
                .iter()
                .take(4)
                .map(|arg| format!("{arg:#x}"))
                .collect();
            format!("in {}({}, ...)", syscall_name(call.number), args.join(", "))
        }
        None => "outside of a system call".to_owned(),
    };
    let channel = thread
        .wchan
        .as_ref()
        .map(|wchan| format!(", wchan {}", printable(wchan)))
        .unwrap_or_default();
    let waits = match thread.waits_for {
        WaitsFor::Doorbell => ", waiting for this doorbell",
        WaitsFor::OtherFds => ", waiting for fds but not for this doorbell",
        WaitsFor::HubFutex(_) => ", waiting on a futex word of the hub",
        WaitsFor::SomeFds | WaitsFor::Futex | WaitsFor::Other | WaitsFor::Nothing => "",
    };
    format!(
        "{} tid {} {:?} {} {call}{channel}{waits}",
        who(proc, names),
        thread.tid.0,
        thread.name,
        thread.state
    )
}

fn event_words(event: &Event, names: &Directory) -> String {
    let what = match &event.kind {
        EventKind::Ring {
            syscall,
            result,
            rings,
            ..
        } => {
            format!(
                "rang: {} = {}{}",
                call_words(*syscall, "send"),
                result_words(*result),
                rings_words(rings.as_ref())
            )
        }
        EventKind::Take {
            syscall,
            result,
            rings,
            ..
        } => {
            format!(
                "took a token: {} = {}{}",
                call_words(*syscall, "receive"),
                result_words(*result),
                rings_words(rings.as_ref())
            )
        }
        EventKind::Sleep { syscall, rings, .. } => {
            let call = syscall.map_or_else(|| "no system call".to_owned(), syscall_name);
            format!("slept in {call}{}", rings_words(rings.as_ref()))
        }
        EventKind::Wake { syscall, result } => format!(
            "woke: {} = {}",
            syscall_name(*syscall),
            result_words(*result)
        ),
        EventKind::FutexWake { offset, woken, .. } => {
            format!("woke {woken} on the futex word at {offset:#x}")
        }
        EventKind::Fork { child } => format!("started process {child}"),
        EventKind::Exec => "executed another program".to_owned(),
        EventKind::Exit { process: true } => "ended".to_owned(),
        EventKind::Exit { process: false } => "ended a thread".to_owned(),
    };
    format!("{} tid {} {what}", who(event.proc, names), event.tid.0)
}

fn rings_words(rings: Option<&PeerRings>) -> String {
    rings.map_or_else(String::new, |rings| {
        let lane = |name, ring: Option<Indexes>| {
            ring.map_or_else(String::new, |ring| {
                format!(" {name} {}/{}", ring.head, ring.tail)
            })
        };
        format!(
            "  [peer {}{}{}]",
            rings.peer.0,
            lane("host->peer", rings.to_peer),
            lane("peer->host", rings.to_host)
        )
    })
}

/// The call by its name, or what it did where only its socket was watched.
fn call_words(syscall: Option<u16>, did: &str) -> String {
    syscall.map_or_else(|| did.to_owned(), syscall_name)
}

fn result_words(result: i32) -> String {
    if result < 0 {
        format!("-1 {}", errno_name(result))
    } else {
        result.to_string()
    }
}

/// A duration as people read it: three significant units at most, down to microseconds.
fn duration(ns: u64) -> String {
    let rounded = if ns >= 1_000_000_000 {
        ns / 1_000_000 * 1_000_000
    } else {
        ns / 1_000 * 1_000
    };
    humantime::format_duration(std::time::Duration::from_nanos(rounded)).to_string()
}

/// Text from the traced side, harmless for a terminal: control and other unprintable characters are escaped.
pub fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        // `escape_debug` leaves printable characters alone, but also escapes quotes and backslashes, which are fine.
        match character {
            '"' | '\'' | '\\' => safe.push(character),
            _ => safe.extend(character.escape_debug()),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_command_a_terminal() {
        assert_eq!(printable("a\x1b[2Jb\n\"c\""), "a\\u{1b}[2Jb\\n\"c\"");
        assert_eq!(printable("größe"), "größe");
    }

    #[test]
    fn durations_are_short() {
        assert_eq!(duration(53_123_456), "53ms 123us");
        assert_eq!(duration(2_000_000_500), "2s");
        assert_eq!(duration(0), "0s");
    }
}
