//! `shmtrace nudge`: a lane whose token was stolen goes on, a healthy one is left alone.

use crate::support::{Host, Kind, Target, run};

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_stolen_token_is_given_back() {
    let host = Host::hung(Kind::Rapace);
    let tree = host.arg();
    let other = run(&["nudge", "--pid-tree", &tree, "--peer", "0"]);
    assert_eq!(other.code, Some(1), "peer 0 is not stuck: {other:?}");
    assert!(
        other.stderr.contains("no lane here is proven stuck"),
        "{other:?}"
    );
    assert_eq!(other.stdout, "");

    let nudged = run(&["nudge", "--pid-tree", &tree, "--peer", "1"]);
    assert_eq!(nudged.code, Some(0), "{nudged:?}");
    assert!(nudged.stdout.contains("host->peer of peer 1"), "{nudged:?}");
    assert!(
        nudged.stdout.contains("emptied the ring (1 entry)"),
        "{nudged:?}"
    );
    assert!(
        nudged.stdout.contains("the signal had been lost"),
        "{nudged:?}"
    );

    let again = run(&["nudge", "--pid-tree", &tree]);
    assert_eq!(again.code, Some(1), "nothing is stuck any more: {again:?}");
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_healthy_lane_is_rung_by_force_only() {
    let host = Host::healthy(Kind::Rapace);
    let tree = host.arg();
    let refused = run(&["nudge", "--pid-tree", &tree]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let forced = run(&[
        "nudge",
        "--pid-tree",
        &tree,
        "--peer",
        "0",
        "--force",
        "--wait",
        "50ms",
    ]);
    assert!(forced.stdout.contains("not proven stuck"), "{forced:?}");
    let nobody = run(&["nudge", "--pid-tree", &tree, "--peer", "9"]);
    assert_eq!(nobody.code, Some(1));
    assert!(nobody.stderr.contains("there are 0, 1"), "{nobody:?}");
}

#[test]
fn without_a_hub_there_is_nothing_to_ring() {
    let mut target = Target::script("echo up; sleep 100");
    target.line();
    let ran = run(&["nudge", "--pid-tree", &target.arg()]);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr.contains("no process of the tree maps a hub"),
        "{ran:?}"
    );
}
