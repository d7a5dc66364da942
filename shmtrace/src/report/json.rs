//! NDJSON: one object a line, header first, summary last. `schema/ndjson-1.json` describes it.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::{Map, Value, json, ser::Formatter};
use shmtrace_engine::{
    Finding, HubId, LaneId, Mono, PeerId, ProcId,
    input::{Event, EventKind, Indexes, PeerRings, ThreadObservation, WaitsFor},
};

use super::{Header, Report, SCHEMA, WallClock, syscall_name};
use crate::session::{Directory, Totals};

/// Writes NDJSON.
pub struct Json<W> {
    out: W,
    clock: WallClock,
}

impl<W: Write> Json<W> {
    /// Writes to `out`.
    pub fn new(out: W, clock: WallClock) -> Self {
        Self { out, clock }
    }

    fn line(&mut self, value: &Value) -> io::Result<()> {
        write_json(&mut self.out, value)?;
        self.out.write_all(b"\n")?;
        // A script acts on a finding when it comes, not when a buffer is full.
        self.out.flush()
    }
}

/// Writes a value on one line. Names in it are as they are to a JSON reader, and harmless to a terminal.
pub fn write_json(out: impl Write, value: &impl Serialize) -> serde_json::Result<()> {
    value.serialize(&mut serde_json::Serializer::with_formatter(out, Harmless))
}

/// JSON must escape controls up to U+001F only, and a terminal obeys those from U+007F to U+009F as well.
struct Harmless;

impl Formatter for Harmless {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, bad)) = rest.char_indices().find(|(_, c)| c.is_control()) {
            writer.write_all(&rest.as_bytes()[..at])?;
            write!(writer, "\\u{:04x}", u32::from(bad))?;
            rest = &rest[at + bad.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}

impl<W: Write> Report for Json<W> {
    fn header(&mut self, header: &Header) -> io::Result<()> {
        self.line(&json!({
            "type": "header",
            "schema": SCHEMA,
            "version": env!("CARGO_PKG_VERSION"),
            "start_time": self.clock.start_time(),
            "start_mono_ns": self.clock.origin().0,
            "kernel": header.kernel,
            "roots": header.roots,
            "grace_ns": header.grace_ns,
            "limits": header.limits,
        }))
    }

    fn finding(&mut self, finding: &Finding, names: &Directory) -> io::Result<()> {
        let timeline: Vec<Value> = finding
            .timeline
            .iter()
            .map(|event| self.event_object(event, names))
            .collect();
        let object = json!({
            "type": "finding",
            "id": format!("f{}", finding.id),
            "time": self.clock.rfc3339(finding.at),
            "mono_ns": finding.at.0,
            "code": finding.code.as_str(),
            "cause": finding.cause.map(shmtrace_engine::Cause::as_str),
            "state": finding.state.as_str(),
            "lane": finding.lane.map(|lane| lane.direction.to_string()),
            "peer": finding.peer.map(|peer| peer_object(finding.hub, peer, finding.plugin, names)),
            "host": finding.host.map(|host| json!({"pid": host.pid, "name": names.process(host)})),
            "hub": finding.hub.and_then(|hub| names.hub(hub)),
            "ring": finding.ring.map(|ring| json!({
                "head": ring.head,
                "tail": ring.tail,
                "len": ring.len(),
                "capacity": finding.capacity,
            })),
            "doorbell_pending": finding.doorbell_pending,
            "stuck_ns": finding.stuck_ns,
            "count": finding.count,
            "threads": finding.threads.iter().map(|(proc, thread)| thread_object(*proc, thread, names)).collect::<Vec<_>>(),
            "timeline": timeline,
            "rule": finding.rule,
            "explanation": finding.explanation,
            "note": finding.note,
            "culprit": finding.culprit.map(|(proc, tid)| json!({
                "pid": proc.pid,
                "tid": tid.0,
                "name": names.process(proc),
            })),
        });
        self.line(&object)
    }

    fn event(&mut self, event: &Event, names: &Directory) -> io::Result<()> {
        let mut object = self.event_object(event, names);
        object["type"] = json!("event");
        self.line(&object)
    }

    fn summary(&mut self, totals: &Totals, names: &Directory) -> io::Result<()> {
        let findings: Map<String, Value> = totals
            .findings
            .iter()
            .map(|(code, count)| (code.as_str().to_owned(), json!(count)))
            .collect();
        let peers: Vec<Value> = names
            .peers()
            .map(|peer| {
                let mut object = peer_object(Some(peer.hub), peer.peer, peer.plugin, names);
                object["hub"] = json!(names.hub(peer.hub));
                object["host_pid"] = json!(peer.host.map(|host| host.pid));
                object["certain"] = json!(peer.certain);
                object
            })
            .collect();
        self.line(&json!({
            "type": "summary",
            "duration_ns": totals.duration_ns,
            "events": totals.events,
            "lost": totals.lost,
            "findings": findings,
            "masked": totals.masked,
            "inconclusive": totals.inconclusive,
            "peers": peers,
            "calls": {
                "seen": totals.calls,
                "recorded": totals.call_records,
                "lost": totals.call_drops,
                "filtered": totals.filtered,
            },
            "ring_faults": totals.ring_faults,
            "evicted": totals.evicted,
            "notes": totals.notes,
            "limits": totals.limits,
            "canary": totals.canary.map(|count| json!({
                "planted": count.planted,
                "found": count.found,
                "blind": count.was_blind,
            })),
        }))
    }

    fn canary(&mut self, at: Mono, blind: bool, words: &str) -> io::Result<()> {
        self.note(words)?;
        self.line(&json!({
            "type": "canary",
            "time": self.clock.rfc3339(at),
            "mono_ns": at.0,
            "state": if blind { "blind" } else { "found" },
            "explanation": words,
        }))
    }

    fn alive(&mut self, _totals: &Totals, _names: &Directory) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> Json<W> {
    fn event_object(&self, event: &Event, names: &Directory) -> Value {
        let mut object = json!({
            "time": self.clock.rfc3339(event.at),
            "mono_ns": event.at.0,
            "pid": event.proc.pid,
            "tid": event.tid.0,
            "process": names.process(event.proc),
            "cpu": event.cpu,
        });
        if let (Value::Object(object), Value::Object(detail)) =
            (&mut object, detail(&event.kind, names))
        {
            object.extend(detail);
        }
        object
    }
}

fn detail(kind: &EventKind, names: &Directory) -> Value {
    let call = |name: &str, syscall: Option<u16>, result: i32| json!({"event": name, "syscall": syscall.map(syscall_name), "result": result});
    match kind {
        EventKind::Ring {
            end,
            syscall,
            result,
            rings,
        } => merged(
            call("ring", *syscall, *result),
            json!({"socket": end.0}),
            rings.as_ref(),
            names,
        ),
        EventKind::Take {
            end,
            syscall,
            result,
            rings,
        } => merged(
            call("take", *syscall, *result),
            json!({"socket": end.0}),
            rings.as_ref(),
            names,
        ),
        EventKind::Sleep {
            syscall,
            arg,
            rings,
            ..
        } => {
            let detail =
                json!({"event": "sleep", "syscall": syscall.map(syscall_name), "arg": arg});
            merged(detail, json!({}), rings.as_ref(), names)
        }
        EventKind::Wake { syscall, result } => call("wake", Some(*syscall), *result),
        EventKind::FutexWake { hub, offset, woken } => {
            json!({"event": "futex-wake", "hub": names.hub(*hub), "offset": offset, "woken": woken})
        }
        EventKind::Fork { child } => json!({"event": "fork", "child": child}),
        EventKind::Exec => json!({"event": "exec"}),
        EventKind::Exit { process } => json!({"event": "exit", "last_thread": process}),
    }
}

fn merged(mut object: Value, more: Value, rings: Option<&PeerRings>, names: &Directory) -> Value {
    if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
        object.extend(more);
        if let Some(rings) = rings {
            object.insert("hub".to_owned(), json!(names.hub(rings.hub)));
            object.insert("peer".to_owned(), json!(rings.peer.0));
            let lanes = [
                ("host_to_peer", rings.to_peer),
                ("peer_to_host", rings.to_host),
            ];
            for (lane, ring) in lanes {
                if let Some(ring) = ring {
                    object.insert(lane.to_owned(), indexes(ring));
                }
            }
        }
    }
    object
}

fn indexes(ring: Indexes) -> Value {
    json!({"head": ring.head, "tail": ring.tail, "len": ring.len()})
}

fn peer_object(
    hub: Option<HubId>,
    peer: PeerId,
    plugin: Option<ProcId>,
    names: &Directory,
) -> Value {
    let name = hub
        .and_then(|hub| names.peer(hub, peer))
        .map(|binding| binding.name.clone());
    json!({"id": peer.0, "name": name, "pid": plugin.map(|plugin| plugin.pid)})
}

fn thread_object(proc: ProcId, thread: &ThreadObservation, names: &Directory) -> Value {
    json!({
        "pid": proc.pid,
        "process": names.process(proc),
        "tid": thread.tid.0,
        "name": thread.name,
        "state": thread.state.to_string(),
        "syscall": thread.syscall.map(|call| json!({
            "name": syscall_name(call.number),
            "number": call.number,
            "args": call.args,
        })),
        "wchan": thread.wchan,
        "waits_for": waits_for(thread.waits_for),
        "kernel_stack": thread.stack.as_ref().map(|stack| &stack.kernel),
        "user_stack": thread.stack.as_ref().map(|stack| &stack.user),
    })
}

fn waits_for(waits: WaitsFor) -> &'static str {
    match waits {
        WaitsFor::Doorbell => "doorbell",
        WaitsFor::OtherFds => "other-fds",
        WaitsFor::SomeFds => "fds",
        WaitsFor::HubFutex(_) => "hub-futex",
        WaitsFor::Futex => "futex",
        WaitsFor::Other => "other",
        WaitsFor::Nothing => "nothing",
    }
}

/// The lane in words, for other reports.
pub(super) fn lane_words(lane: LaneId, name: Option<&str>) -> String {
    let peer = name.map_or_else(
        || format!("peer {}", lane.peer.0),
        |name| format!("peer {} {name}", lane.peer.0),
    );
    format!("{} of {peer}", lane.direction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_are_escaped_and_read_back_as_they_were() {
        let name = "y\u{1b}[2J\u{7f}\u{9b}31m größe \u{9b}";
        let mut line = Vec::new();
        write_json(&mut line, &json!({ "name": name })).unwrap();
        let line = String::from_utf8(line).unwrap();
        assert!(!line.contains(char::is_control), "{line:?}");
        assert!(line.contains("\\u007f\\u009b31m größe \\u009b"), "{line}");
        let read: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["name"], name);
    }
}
