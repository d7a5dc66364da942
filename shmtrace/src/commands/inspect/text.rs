//! A hub for people, at most 100 columns wide.

use std::fmt::Write as _;

use super::snapshot::{ClassShot, DescriptorShot, HeaderShot, PeerShot, RingShot, Snapshot};
use crate::report::printable;

/// Lines of a list that are shown without `--all`.
const SHORT: usize = 16;
/// Letters of a slot map in one line.
const MAP_WIDTH: usize = 64;

/// The whole text. Writing into a `String` cannot fail.
pub(super) fn render(shot: &Snapshot, all: bool) -> String {
    let mut text = String::new();
    let _infallible = writeln!(text, "hub {} ({})", printable(&shot.path), bytes(shot.size));
    if let Some(header) = &shot.header {
        text.push_str(&header_lines(header));
    }
    text.push_str(&mapped_by(shot));
    let _infallible = writeln!(
        text,
        "peers: {} used, {} free",
        shot.peers.len(),
        shot.free_entries
    );
    for peer in &shot.peers {
        text.push_str(&peer_lines(peer, all));
    }
    text.push_str("slots:\n");
    for class in &shot.classes {
        text.push_str(&class_lines(class, all));
    }
    if shot.violations.is_empty() {
        text.push_str("consistency: sound\n");
    } else {
        let _infallible = writeln!(text, "consistency: {} violations", shot.violations.len());
        for violation in &shot.violations {
            let _infallible = writeln!(text, "  ! {}", printable(violation));
        }
    }
    text
}

/// The header's fields.
pub(super) fn header_lines(header: &HeaderShot) -> String {
    format!(
        "header: version {}, flags {:#x}, ring capacity {}, {} in use, {} extents\n\
        \x20 peers: {} active, {} ids given out, room for {}\n\
        \x20 offsets: peer table {}, rings {}, size classes {}, extents {}\n",
        header.version,
        header.flags,
        header.ring_capacity,
        bytes(header.current_size),
        header.extent_count,
        header.active_peers,
        header.peer_id_counter,
        header.max_peers,
        header.peer_table_offset,
        header.ring_region_offset,
        header.size_class_offset,
        header.extent_region_offset,
    )
}

fn mapped_by(shot: &Snapshot) -> String {
    let mut text = String::from("mapped by: ");
    if shot.mapped_by.is_empty() {
        text.push_str(if shot.hidden_users == 0 {
            "nobody (left behind)"
        } else {
            "nobody that may be seen"
        });
    }
    let mut column = text.len();
    for (number, mapper) in shot.mapped_by.iter().enumerate() {
        let host = if shot.host_pid == Some(mapper.pid) {
            ", host"
        } else {
            ""
        };
        let word = format!("{} ({}{host})", mapper.pid, printable(&mapper.name));
        let comma = if number == 0 { "" } else { ", " };
        if column + comma.len() + word.len() > 98 {
            text.push_str(",\n  ");
            column = 2;
        } else {
            text.push_str(comma);
            column += comma.len();
        }
        text.push_str(&word);
        column += word.len();
    }
    text.push('\n');
    if shot.hidden_users > 0 {
        let _infallible = writeln!(
            text,
            "  {} processes could not be looked at: run as root",
            shot.hidden_users
        );
    }
    text
}

fn peer_lines(peer: &PeerShot, all: bool) -> String {
    let name = peer
        .name
        .as_deref()
        .map_or_else(|| "?".to_owned(), |name| format!("\"{}\"", printable(name)));
    let pid = peer
        .pid
        .map_or_else(String::new, |pid| format!(" pid {pid}"));
    let age = peer.heartbeat_age_ns.map_or_else(
        || "no heartbeat".to_owned(),
        |age| format!("heartbeat {} ago", seconds(age)),
    );
    let mut text = format!(
        "  peer[{}] {name}{pid}: {}, {age}\n",
        peer.id,
        peer.flags.join("|")
    );
    for (name, ring) in [
        ("recv_ring", &peer.recv_ring),
        ("send_ring", &peer.send_ring),
    ] {
        match ring {
            Some(ring) => text.push_str(&ring_lines(name, ring, all)),
            None => {
                let _infallible = writeln!(text, "    {name}: not in the file");
            }
        }
    }
    text
}

fn ring_lines(name: &str, ring: &RingShot, all: bool) -> String {
    let mut text = format!(
        "    {name} at {}: head={} tail={} len={}/{}\n",
        ring.offset, ring.head, ring.tail, ring.len, ring.capacity
    );
    let shown = if all { ring.waiting.len() } else { SHORT };
    for descriptor in ring.waiting.iter().take(shown) {
        let _infallible = writeln!(text, "      {}", descriptor_line(descriptor));
    }
    text.push_str(&more(ring.waiting.len(), shown, "      "));
    text
}

fn descriptor_line(descriptor: &DescriptorShot) -> String {
    let payload = match (&descriptor.slot, &descriptor.inline) {
        (Some(slot), _) => format!(
            "{} B in slot {} of class {}, generation {}, offset {}",
            descriptor.payload_len, slot.index, slot.class, slot.generation, slot.offset
        ),
        (None, Some(inline)) => {
            let hex: Vec<String> = inline.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{} B inline [{}]", descriptor.payload_len, hex.join(" "))
        }
        (None, None) => String::new(),
    };
    let deadline = descriptor
        .deadline_ns
        .map_or_else(String::new, |deadline| format!(", deadline {deadline}"));
    format!(
        "#{} msg {} channel {} method {:#x} {}: {payload}{deadline}",
        descriptor.index,
        descriptor.msg_id,
        descriptor.channel,
        descriptor.method,
        descriptor.flags.join("|"),
    )
}

fn class_lines(class: &ClassShot, all: bool) -> String {
    if class.slot_size == 0 {
        return format!("  class[{}]: not in the file\n", class.class);
    }
    let mut text = format!(
        "  class[{}] ({:>7}B): {} total, {} free, {} allocated, {} in_flight; {} extents, {} allocations so far\n",
        class.class,
        class.slot_size,
        class.total,
        class.free,
        class.allocated,
        class.in_flight,
        class.extents,
        class.allocations,
    );
    if class.used.is_empty() {
        return text;
    }
    text.push_str(&map_lines(&class.map));
    let shown = if all { class.used.len() } else { SHORT };
    for slot in class.used.iter().take(shown) {
        let owner = slot
            .owner
            .map_or_else(|| "nobody".to_owned(), |owner| format!("peer {owner}"));
        let _infallible = writeln!(
            text,
            "    slot {}: {}, owner {owner}, generation {} ({} behind the busiest slot)",
            slot.index, slot.state, slot.generation, slot.generations_behind
        );
    }
    text.push_str(&more(class.used.len(), shown, "    "));
    text
}

/// The map of states; lines in which all slots are free are counted, not shown.
fn map_lines(map: &str) -> String {
    let mut text = String::from("    map (. free, A allocated, F in flight):\n");
    let mut free = 0;
    let letters: Vec<char> = map.chars().collect();
    for (number, line) in letters.chunks(MAP_WIDTH).enumerate() {
        if line.iter().all(|letter| *letter == '.') {
            free += line.len();
            continue;
        }
        let line: String = line.iter().collect();
        let _infallible = writeln!(text, "    {:>6} {line}", number * MAP_WIDTH);
    }
    if free > 0 {
        let _infallible = writeln!(
            text,
            "           and {free} slots in lines that are all free"
        );
    }
    text
}

fn more(total: usize, shown: usize, indent: &str) -> String {
    match total.checked_sub(shown) {
        Some(rest) if rest > 0 => format!("{indent}... and {rest} more (--all)\n"),
        _ => String::new(),
    }
}

/// Bytes as they are, and in the unit that people think in.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let power = (bytes.ilog2() / 10).min(4);
    let unit = UNITS[power as usize - 1];
    format!(
        "{bytes} bytes, {:.1} {unit}",
        bytes as f64 / f64::from(1024_u32).powi(power.cast_signed())
    )
}

/// Seconds with three digits.
pub(crate) fn seconds(ns: u64) -> String {
    format!("{}.{:03} s", ns / 1_000_000_000, ns / 1_000_000 % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_readable() {
        assert_eq!(bytes(115_384_320), "115384320 bytes, 110.0 MiB");
        assert_eq!(bytes(256), "256 bytes");
        assert_eq!(
            bytes(u64::MAX),
            "18446744073709551615 bytes, 16777216.0 TiB"
        );
        assert_eq!(seconds(1_234_567_890), "1.234 s");
    }

    #[test]
    fn free_lines_of_a_map_are_counted() {
        let map = format!("{}F{}", ".".repeat(70), ".".repeat(200));
        let text = map_lines(&map);
        assert!(text.contains("    64 ......F"), "{text}");
        assert!(text.contains("and 207 slots in lines"), "{text}");
    }
}
