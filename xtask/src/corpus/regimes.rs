//! The ways in which healthy traffic is run and mistreated.

use std::time::Duration;

/// A way to run healthy traffic.
#[derive(Debug)]
pub(crate) struct Regime {
    pub(crate) name: &'static str,
    pub(crate) program: &'static str,
    pub(crate) args: &'static str,
    /// How long each watch lasts; short ones attach and detach in mid-flight.
    pub(crate) watch: Duration,
    /// How often it is watched at least.
    pub(crate) watches: u32,
    /// It takes time and no processor, and runs beside the others.
    pub(crate) idle: bool,
}

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(100);
/// For plugins that sleep for minutes.
const MINUTES: Duration = Duration::from_secs(180);

const fn regime(name: &'static str, program: &'static str, args: &'static str) -> Regime {
    Regime {
        name,
        program,
        args,
        watch: LONG,
        watches: 1,
        idle: false,
    }
}

pub(crate) const REGIMES: [Regime; 22] = [
    regime("one peer", "ddc-sim", "--plugins 1"),
    regime("four peers", "ddc-sim", "--plugins 4"),
    regime("31 peers", "ddc-sim", "--plugins 31"),
    regime("like ddc", "ddc-sim", "--like-ddc"),
    regime(
        "rings that fill",
        "ddc-sim",
        "--plugins 4 --ring-capacity 4 --in-flight 16",
    ),
    regime(
        "doorbell queues that fill",
        "ddc-sim",
        "--plugins 2 --ring-capacity 1024 --in-flight 600",
    ),
    regime(
        "host on one thread",
        "ddc-sim",
        "--plugins 4 --runtime current",
    ),
    regime(
        "plugins with worker threads",
        "ddc-sim",
        "--plugins 4 --plugin-runtime multi --in-flight 4",
    ),
    regime(
        "processes stopped and continued",
        "ddc-sim",
        "--plugins 4 --gap 100us --stop-storm 50ms",
    ),
    regime(
        "stopped for up to two seconds",
        "ddc-sim",
        "--plugins 4 --gap 100us --stop-storm 2s",
    ),
    regime("four busy loops", "ddc-sim", "--plugins 4 --hogs 4"),
    regime("CPU quota of 20 %", "ddc-sim", "--plugins 4 --cpu-quota 20"),
    regime(
        "CPU quota of 50 %, 16 peers",
        "ddc-sim",
        "--plugins 16 --cpu-quota 50",
    ),
    regime(
        "plugins restarted",
        "ddc-sim",
        "--plugins 4 --restart-every 300ms",
    ),
    regime("fork storm beside", "ddc-sim", "--plugins 4 --fork-storm 4"),
    regime(
        "large payloads",
        "ddc-sim",
        "--plugins 4 --payload 0..1M --in-flight 4",
    ),
    Regime {
        watch: SHORT,
        watches: 200,
        ..regime("attach and detach", "ddc-sim", "--plugins 4")
    },
    Regime {
        watch: MINUTES,
        idle: true,
        ..regime(
            "plugins that sleep for minutes",
            "ddc-sim",
            "--plugins 4 --gap 100s",
        )
    },
    regime("rapace 0.4", "rapace-peer-04", "--plugins 4 --in-flight 2"),
    regime("rapace 0.5", "rapace-peer-05", "--plugins 4 --in-flight 2"),
    regime(
        "rapace 0.4, rings that fill",
        "rapace-peer-04",
        "--plugins 4 --ring-capacity 4 --in-flight 8",
    ),
    regime(
        "rapace 0.5, 16 peers",
        "rapace-peer-05",
        "--plugins 16 --gap 100us",
    ),
];
