//! Doorbells that no command line names: matched to their peers by whose ring moves when they are rung.

mod support;

use std::time::Duration;

use support::{Peers, watch::Watch};

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn plugins_without_arguments_are_told_apart_and_their_lost_wakeup_gets_its_cause() {
    for version in ["04", "05"] {
        let mut peers = Peers::start(
            version,
            &[
                "--plugins",
                "4",
                "--round-trips",
                "0",
                "--gap",
                "2ms",
                "--no-args",
                "--steal-after",
                "2000:2",
            ],
        );
        peers.wait_for("ready");
        let mut watch = Watch::start(peers.pid(), &[]);
        peers.wait_for("fault");
        let finding = watch.finding(Duration::from_secs(5), "missed");
        assert_eq!(finding["code"], "missed-wakeup", "{finding:#}");
        assert_eq!(finding["cause"], "stolen", "{finding:#}");
        assert_eq!(finding["lane"], "host->peer");
        assert_eq!(finding["peer"]["id"], 2);
        assert_eq!(finding["peer"]["pid"], peers.plugins()[&2]);
        let (_, lines) = watch.stop();
        let findings = support::watch::findings(&lines).len();
        assert_eq!(findings, 1, "{lines:#?}");
        // All of them, not only the one that hung.
        let summary = lines.last().unwrap();
        let named = |peer: &serde_json::Value| {
            peer["pid"] == peers.plugins()[&u16::try_from(peer["id"].as_u64().unwrap()).unwrap()]
        };
        assert!(
            summary["peers"].as_array().unwrap().iter().all(named),
            "{summary:#}"
        );
    }
}
