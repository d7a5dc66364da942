//! A tree that forks as fast as it can while the watch begins: not one process may be missed.

mod support;

use std::{
    collections::BTreeSet,
    io::Read as _,
    process::{Command, Stdio},
    time::Duration,
};

use support::watch::Watch;

/// Each process of the storm says its pid and the time (seconds since boot) as its last act.
const STORM: &str = "
    say() { read up _ < /proc/uptime; echo $BASHPID $up; }
    sleep 0.3
    for i in {1..1500}; do
        ( for j in 1 2 3; do ( say ) & done; wait; say ) &
        (( i % 25 )) || wait
    done
    wait";

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn no_process_of_a_fork_storm_is_missed() {
    let mut storm = Command::new("bash")
        .args(["-c", STORM])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Attached in its midst: some processes were there before, some come while it attaches, most come later.
    std::thread::sleep(Duration::from_millis(350));
    let mut watch = Watch::start(storm.id(), &["--events"]);
    let began = uptime();
    let mut said = String::new();
    storm
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    storm.wait().unwrap();
    let (_, lines) = watch.end();

    let seen: BTreeSet<u64> = lines
        .iter()
        .filter(|line| line["event"] == "exit" && line["last_thread"] == true)
        .filter_map(|line| line["pid"].as_u64())
        .collect();
    let mut expected = 0;
    for line in said.lines() {
        let (pid, at) = line.split_once(' ').unwrap();
        // It spoke before its end, so whoever spoke after the start was to be seen to end.
        if at.parse::<f64>().unwrap() > began {
            expected += 1;
            assert!(
                seen.contains(&pid.parse().unwrap()),
                "process {pid} was missed"
            );
        }
    }
    assert!(
        expected >= 100,
        "the storm was over before the watch began: {expected} processes were left"
    );
    assert_eq!(lines.last().unwrap()["lost"], 0);
}

fn uptime() -> f64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}
