//! Wrong calls: each is refused with what to do instead, and with the exit code that scripts rely on.

use crate::support::{Ran, Target, run, shmtrace};

/// Arguments, exit code, and words of the message.
type Case = (&'static [&'static str], i32, &'static [&'static str]);

const USAGE: &[Case] = &[
    (&[], 2, &["no process given", "--pid-tree PID"]),
    (&["watch"], 2, &["no process given", "--pid-tree PID"]),
    (&["record", "-o", "/tmp/x"], 2, &["no process given"]),
    (&["record", "--pid-tree", "1"], 2, &["--output <FILE>"]),
    (&["dump"], 2, &["no process given"]),
    (&["profile"], 2, &["no process given"]),
    (&["nudge"], 2, &["no process given"]),
    (&["kill"], 2, &["no process given"]),
    (&["inspect"], 2, &["give either a hub file or --pid-tree"]),
    (
        &["inspect", "x.shm", "--pid-tree", "1"],
        2,
        &["give either a hub file or --pid-tree"],
    ),
    (&["run"], 2, &["<CMD>"]),
    (
        &["run", "--memory-max", "4X", "--", "true"],
        2,
        &["give one like 4G or 512M, or none"],
    ),
    (
        &["nudge", "--pid-tree", "1", "--force"],
        2,
        &["--peer <ID>"],
    ),
    (&["--pid-tree", "0"], 2, &["\"0\" is not a process id"]),
    (&["--pid-tree", "ddc"], 2, &["\"ddc\" is not a process id"]),
    (&["--pid-tree", ""], 2, &["no process given"]),
    (
        &["--pid-tree", "1", "--grace", "soon"],
        2,
        &["--grace <DURATION>"],
    ),
    (
        &["--pid-tree", "1", "--code", "gremlins"],
        2,
        &["no such class", "missed-wakeup"],
    ),
    (
        &["--pid-tree", "1", "--fail-on", "gremlins"],
        2,
        &["no such class", "masked, any"],
    ),
    (
        &["--pid-tree", "1", "--lane", "up"],
        2,
        &["host->peer", "peer->host"],
    ),
    (&["--pid-tree", "1", "--format", "xml"], 2, &["text, json"]),
    (
        &["--pid-tree", "1", "--quiet", "--verbose"],
        2,
        &["cannot be used with"],
    ),
    (
        &["explain", "gremlins"],
        2,
        &["there is no finding \"gremlins\"", "missed-wakeup"],
    ),
    (
        &["man", "gremlins"],
        2,
        &["there is no command \"gremlins\"", "watch"],
    ),
    (&["completions", "gremlins"], 2, &["bash"]),
    (&["gremlins"], 2, &["unrecognized subcommand", "--help"]),
    (&["kill", "--pid-tree", "1"], 2, &["1"]),
    (
        &["profile", "-o", "/no/such/folder/x.svg", "--pid-tree", "1"],
        2,
        &["/no/such/folder/x.svg", "--output"],
    ),
];

const RUNTIME: &[Case] = &[
    (
        &["--pid-tree", "4194304"],
        1,
        &["no such process: 4194304", "ps -p 4194304"],
    ),
    (
        &["dump", "--pid-tree", "4194304"],
        1,
        &["no such process: 4194304", "ps -p 4194304"],
    ),
    (
        &["inspect", "--pid-tree", "4194304"],
        1,
        &["no such process: 4194304"],
    ),
    (
        &["nudge", "--pid-tree", "4194304"],
        1,
        &["no such process: 4194304"],
    ),
    (
        &["kill", "--pid-tree", "4194304"],
        1,
        &["no such process: 4194304"],
    ),
    (
        &["profile", "--pid-tree", "4194304"],
        1,
        &["no such process: 4194304"],
    ),
    (
        &["replay", "/nowhere.rec"],
        1,
        &["cannot open recording /nowhere.rec"],
    ),
    (&["replay", "/etc/passwd"], 1, &["/etc/passwd"]),
    (
        &["inspect", "/etc/passwd"],
        1,
        &["is no hub", "/tmp/dodeca-hub-PID.shm"],
    ),
    (
        &["inspect", "/nowhere.shm"],
        1,
        &["/nowhere.shm", "No such file"],
    ),
    (
        &["kill", "--stale", "--hub-dir", "/nowhere"],
        1,
        &["cannot look for hub files in /nowhere"],
    ),
];

fn check(case: &Case) {
    let (args, code, words) = case;
    let ran = run(args);
    assert_eq!(ran.code, Some(*code), "{args:?}: {ran:?}");
    assert_eq!(ran.stdout, "", "{args:?}: diagnostics go to stderr");
    for word in *words {
        assert!(
            ran.stderr.contains(word),
            "{args:?} lacks {word:?}: {}",
            ran.stderr
        );
    }
}

#[test]
fn wrong_calls_say_what_to_do_instead() {
    USAGE.iter().chain(RUNTIME).for_each(check);
}

#[test]
fn a_tree_without_a_hub_is_named_as_such() {
    let mut other = Target::script("echo up; sleep 100");
    other.line();
    for command in ["dump", "inspect", "nudge"] {
        let ran = run(&[command, "--pid-tree", &other.arg()]);
        assert_eq!(ran.code, Some(1), "{command}: {ran:?}");
        let remedy = "give the pid of the host process or of one of its parents";
        assert!(ran.stderr.contains(remedy), "{command}: {ran:?}");
    }
}

#[test]
fn switches_take_what_people_write_into_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let hub = folder.path().join("left.shm");
    let path = folder.path().to_str().unwrap();
    for (value, dry) in [
        ("1", true),
        ("true", true),
        ("yes", true),
        ("0", false),
        ("", false),
    ] {
        std::fs::write(&hub, [&b"RAPAHUB\0"[..], &[0; 4088]].concat()).unwrap();
        let mut kill = shmtrace(&["kill", "--stale", "--hub-dir", path]);
        let ran = Ran::from(kill.env("SHMTRACE_DRY_RUN", value).output().unwrap());
        assert_eq!(ran.code, Some(0), "{value:?}: {ran:?}");
        assert_eq!(hub.exists(), dry, "{value:?}: {ran:?}");
    }
    let mut watch = shmtrace(&[]);
    let ran = Ran::from(watch.env("SHMTRACE_PID_TREE", "4194304").output().unwrap());
    assert!(ran.stderr.contains("no such process: 4194304"), "{ran:?}");
}

/// Everybody but root is told what to do, and nothing is started or changed.
#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn without_rights_each_command_refuses_with_the_remedy() {
    let (_folder, program) = crate::support::program_for_all();
    let host = crate::support::Host::healthy(crate::support::Kind::Sim);
    let tree = host.arg();
    let cases: &[(&[&str], i32)] = &[
        (&["--pid-tree", &tree], 5),
        (&["profile", "--duration", "1s", "--pid-tree", &tree], 5),
        (&["run", "--memory-max", "none", "--", "true"], 5),
        (&["kill", "--pid-tree", &tree], 5),
        (&["nudge", "--pid-tree", &tree], 5),
        (&["dump", "--pid-tree", &tree], 5),
        (&["inspect", "--pid-tree", &tree], 5),
    ];
    for (args, code) in cases {
        let ran = crate::support::run_as_nobody(&program, args);
        assert_eq!(ran.code, Some(*code), "{args:?}: {ran:?}");
        assert!(
            ran.stderr.contains("sudo") || ran.stderr.contains("root"),
            "{args:?}: {ran:?}"
        );
    }
    assert!(crate::support::exists(host.pid()));
}
