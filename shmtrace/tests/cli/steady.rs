//! What differs from run to run taken out of a text, so that the rest can be compared with a snapshot.

use std::{collections::BTreeMap, fs};

use insta::Settings;

use crate::support::Host;

/// In the order in which they are applied.
const VARYING: [(&str, &str); 21] = [
    (r"(?m)^ {6}(kernel|user) .*\n", ""),
    // Stacks are those of this build on this kernel.
    (
        r"(?m)^ {8}(kernel: |#\d+ |callers not known|\.\.\. and ).*\n",
        "",
    ),
    (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "[time]"),
    (r"kernel \d\S*", "kernel [release]"),
    (r"shmtrace \d+\.\d+\.\d+", "shmtrace [version]"),
    (r"head=\d+ tail=\d+", "head=[h] tail=[t]"),
    (
        r"#\d+ msg \d+ channel \d+ method 0x[0-9a-f]+",
        "#[i] msg [m] channel [c] method [m]",
    ),
    (r"inline \[[0-9a-f ]+\]", "inline [bytes]"),
    (r"\b(\d+(ns|us|ms|s|m) ?)+\b", "[duration]"),
    (r"heartbeat \d+\.\d+ s", "heartbeat [duration]"),
    (r"\(0x[0-9a-f]+(, 0x[0-9a-f]+)*, \.\.\.\)", "(...)"),
    // Wait channels have other names on other kernels.
    (r", (at|wchan) [a-z_0-9]+", ", $1 [channel]"),
    (r"\d+ events, 0 lost", "[n] events, 0 lost"),
    (r"\d+(\.\d+)? [KM]iB in use\)", "[size] in use)"),
    (
        r"waits? for this doorbell|waiting for this doorbell",
        "waits for its doorbell",
    ),
    (r"rule .*", "rule [rule]"),
    (r"/\S*/target/\S*/", "[target]/"),
    // The limit that a machine of continuous integration may have.
    (r"(?m)^  limited here: .*\n", ""),
    (r"tokio-runtime-w|tokio-rt-worker", "tokio-worker"),
    (r"/tmp/\.tmp\w+", "[folder]"),
    (r"\[duration\] \[duration\]", "[duration]"),
];

/// Compares a text in which only the version varies with the snapshot of this name.
pub(crate) fn assert_same(name: &str, text: &str) {
    let mut settings = settings();
    settings.add_filter(r"shmtrace \d+\.\d+\.\d+", "shmtrace [version]");
    settings.bind(|| insta::assert_snapshot!(name, text));
}

fn settings() -> Settings {
    let mut settings = Settings::clone_current();
    settings.set_snapshot_path("snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings
}

/// Compares what was printed of a host with the snapshot of this name.
pub(crate) fn assert_steady(name: &str, host: &Host, text: &str) {
    let mut settings = settings();
    for (number, role) in numbers(host) {
        settings.add_filter(&format!(r"\b{number}\b"), role);
    }
    for (pattern, replacement) in VARYING {
        settings.add_filter(pattern, replacement);
    }
    settings.bind(|| insta::assert_snapshot!(name, text));
}

/// Compares what was printed of processes that have ended with the snapshot of this name.
pub(crate) fn assert_steady_after(name: &str, text: &str) {
    let mut settings = settings();
    settings.add_filter(r"watching \d+", "watching [pid]");
    settings.add_filter(r"\d+ samples( \(\d+ %\))?", "[n] samples");
    settings.add_filter(r" of waits( \(\d+ %\))?", " of waits");
    for (pattern, replacement) in VARYING {
        settings.add_filter(pattern, replacement);
    }
    settings.bind(|| insta::assert_snapshot!(name, text));
}

/// Pids and tids of the host's tree with what they are.
fn numbers(host: &Host) -> BTreeMap<u32, String> {
    let mut numbers = BTreeMap::new();
    let mut note = |pid: u32, role: &str| {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten();
        let mut tids: Vec<u32> = tasks
            .filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        tids.sort_unstable();
        for (index, tid) in tids.into_iter().enumerate() {
            numbers.insert(tid, format!("[{role} thread {index}]"));
        }
        // A process's first thread has its number.
        numbers.insert(pid, format!("[{role}]"));
    };
    note(host.pid(), "host");
    for (peer, pid) in &host.plugins {
        note(*pid, &format!("plugin {peer}"));
    }
    numbers
}
