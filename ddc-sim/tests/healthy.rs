//! Healthy builds under every kind of stress end with every call answered and nothing left behind.

use std::fs;

use sim_kit::stage::Stage;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ddc-sim");

fn run(arguments: &[&str]) {
    let mut stage = Stage::start(PROGRAM, arguments).expect("it starts");
    let done = stage.event("done").expect("it ends");
    let wanted = arguments
        .iter()
        .find_map(|each| each.strip_prefix("--calls="));
    let wanted: u64 = wanted
        .expect("a number of calls")
        .parse()
        .expect("a number");
    assert_eq!(done["round_trips"], wanted, "{arguments:?}");
    for wrong in ["mismatched", "unexpected"] {
        assert_eq!(done[wrong], 0, "{arguments:?}");
    }
    assert!(
        stage.finish().expect("a clean end").success(),
        "{arguments:?}"
    );
}

#[test]
fn plain() {
    run(&[
        "--plugins=4",
        "--calls=4000",
        "--payload=0..256K",
        "--in-flight=2",
    ]);
    run(&[
        "--plugins=1",
        "--calls=500",
        "--gap=200us",
        "--runtime=current",
        "--plugin-runtime=multi",
    ]);
}

#[test]
fn rings_that_fill() {
    run(&[
        "--plugins=2",
        "--calls=4000",
        "--ring-capacity=4",
        "--in-flight=16",
    ]);
}

#[test]
fn plugins_that_come_and_go() {
    run(&[
        "--plugins=3",
        "--calls=3000",
        "--gap=1ms",
        "--restart-every=100ms",
    ]);
}

#[test]
fn processes_that_stop_and_go_on_beside_hogs_and_forks() {
    run(&[
        "--plugins=3",
        "--calls=2000",
        "--stop-storm=5ms",
        "--hogs=1",
        "--fork-storm=1",
        "--in-flight=4",
    ]);
}

#[test]
fn queues_that_fill() {
    // More than the 278 datagrams that a doorbell takes, in front of plugins that are stopped again and again.
    run(&[
        "--plugins=2",
        "--calls=20000",
        "--ring-capacity=1024",
        "--in-flight=600",
        "--stop-storm=20ms",
    ]);
}

#[test]
fn several_hubs_in_one_tree() {
    run(&["--plugins=2", "--calls=2000", "--gap=200us", "--hubs=3"]);
}

#[test]
fn a_plugin_whose_command_line_tells_nothing() {
    let mut stage = Stage::start(
        PROGRAM,
        ["--plugins=2", "--calls=0", "--gap=1ms", "--no-args"],
    )
    .expect("it starts");
    for plugin in stage.plugins().expect("plugins") {
        let line =
            fs::read_to_string(format!("/proc/{}/cmdline", plugin.pid)).expect("a command line");
        assert!(
            !line.contains("hub-path") && !line.contains("peer-id") && !line.contains("doorbell"),
            "{line:?}"
        );
        let name = fs::read_to_string(format!("/proc/{}/comm", plugin.pid)).expect("a name");
        assert!(
            plugin.name.starts_with(name.trim()),
            "{name:?} is not {}",
            plugin.name
        );
    }
    assert!(stage.end().expect("a clean end").success());
}

#[test]
fn a_killed_host_takes_its_plugins_along() {
    let mut stage =
        Stage::start(PROGRAM, ["--plugins=3", "--calls=0", "--gap=1ms"]).expect("it starts");
    let (plugins, hub) = (
        stage.plugins().expect("plugins"),
        stage.hub().expect("a hub"),
    );
    drop(stage);
    for plugin in plugins {
        let gone = || {
            let state =
                fs::read_to_string(format!("/proc/{}/stat", plugin.pid)).unwrap_or_default();
            state.is_empty() || state.contains(") Z ")
        };
        let start = std::time::Instant::now();
        while !gone() {
            assert!(
                start.elapsed().as_secs() < 10,
                "plugin {} outlives its host",
                plugin.pid
            );
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    // Nobody was left to remove it.
    fs::remove_file(hub).expect("the hub of a killed host");
}

#[test]
fn a_fault_whose_moment_never_comes_is_an_error() {
    let stage = Stage::start(
        PROGRAM,
        ["--plugins=1", "--calls=10", "--fault=never-rung:after=1000"],
    )
    .expect("it starts");
    assert!(!stage.finish().expect("a clean end").success());
}

#[test]
fn a_host_and_its_plugins_answer_sigusr1() {
    let path = std::env::temp_dir().join(format!("ddc-sim-sigusr1-{}.txt", std::process::id()));
    let said = fs::File::create(&path).expect("a file");
    let mut host = std::process::Command::new(PROGRAM);
    host.args(["host", "--plugins=2", "--calls=0", "--gap=1ms"])
        .stdout(std::process::Stdio::null())
        .stderr(said);
    sim_kit::child::die_with_parent(&mut host, &[]);
    let mut host = host.spawn().expect("it starts");
    let text = || fs::read_to_string(&path).expect("what it said");
    let start = std::time::Instant::now();
    // Asked again and again: a plugin that was only just started cannot answer yet.
    while !(text().contains("peer[0] \"dodeca-mod-css\": recv_ring(")
        && text().contains("=== End SIGUSR1: dodeca-mod-css")
        && text().contains("=== End SIGUSR1: dodeca-mod-html"))
    {
        assert!(start.elapsed().as_secs() < 30, "no answer: {}", text());
        std::thread::sleep(std::time::Duration::from_millis(300));
        // Before it is prepared, the signal would end it.
        if fs::read_dir(format!("/proc/{}/task", host.id()))
            .is_ok_and(|threads| threads.count() > 2)
        {
            sim_kit::child::signal(host.id(), rustix::process::Signal::USR1).expect("asking");
        }
    }
    assert!(text().contains("HubAllocator slots: "), "{}", text());
    sim_kit::child::end_all(
        std::slice::from_mut(&mut host),
        std::time::Duration::from_secs(10),
    );
    fs::remove_file(&path).expect("the file");
}
