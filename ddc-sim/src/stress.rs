//! What goes on beside a healthy build: busy processors, fork storms, processes stopped and continued.

use std::fs;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use rustix::process::Signal;
use sim_kit::child;
use sim_kit::traffic::Dice;

use crate::group::Group;

/// Stress beside the calls.
#[derive(Debug, Clone, Args)]
pub(crate) struct StressOptions {
    /// Stop and continue random processes of the tree, the host included, for up to this long each
    #[arg(long, value_parser = humantime::parse_duration)]
    stop_storm: Option<Duration>,
    /// Keep this many short-lived processes being born beside the build
    #[arg(long, default_value_t = 0)]
    fork_storm: u16,
    /// Keep this many processors busy
    #[arg(long, default_value_t = 0)]
    hogs: u16,
    /// Let the whole build have at most this many percent of one processor, as a control group with a CPU quota does
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    cpu_quota: Option<u64>,
}

/// The period of a quota that service managers set.
const QUOTA_PERIOD_US: u64 = 100_000;

/// Processes that make stress, and a group that limits us; they end with this.
#[derive(Debug, Default)]
pub(crate) struct Stress {
    children: Vec<Child>,
    group: Option<Group>,
}

impl StressOptions {
    /// Starts what was asked for. Call it on the thread that outlives it.
    pub(crate) fn start(&self, seed: u64) -> anyhow::Result<Stress> {
        let mut stress = Stress::default();
        for _ in 0..self.hogs {
            stress.start(&["hog"])?;
        }
        for _ in 0..self.fork_storm {
            stress.start(&["fork-storm"])?;
        }
        if let Some(longest) = self.stop_storm {
            let longest = format!("--longest={}", humantime::format_duration(longest));
            stress.start(&["stop-storm", &longest, &format!("--seed={seed}")])?;
        }
        if let Some(percent) = self.cpu_quota {
            let group = Group::create("cpu", "quota")?;
            group.limit_cpu(QUOTA_PERIOD_US * percent / 100, QUOTA_PERIOD_US)?;
            // The plugins are born into it.
            group.add(std::process::id())?;
            stress.group = Some(group);
        }
        Ok(stress)
    }
}

impl Stress {
    fn start(&mut self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new(std::env::current_exe().context("finding our own program")?);
        command.args(arguments);
        child::die_with_parent(&mut command, &[]);
        self.children.push(
            command
                .spawn()
                .with_context(|| format!("starting {arguments:?}"))?,
        );
        Ok(())
    }
}

impl Drop for Stress {
    fn drop(&mut self) {
        child::end_all(&mut self.children, Duration::from_secs(1));
        // We leave the group before it goes.
        self.group = None;
    }
}

/// The role `fork-storm`: children without end, one at a time.
pub(crate) fn fork_storm() -> anyhow::Result<()> {
    loop {
        let mut command = Command::new("true");
        child::die_with_parent(&mut command, &[]);
        command.status().context("starting `true`")?;
    }
}

/// The role `stop-storm`: stops a process of our host's tree, and continues it after up to `longest`.
pub(crate) fn stop_storm(longest: Duration, seed: u64) -> anyhow::Result<()> {
    let (host, own) = (std::os::unix::process::parent_id(), std::process::id());
    let mut dice = Dice::new(seed, 0x5707);
    let mut pause = || Duration::from_nanos(dice.between(0, longest.as_nanos() as u64));
    let mut turn = 0usize;
    loop {
        std::thread::sleep(pause());
        let children =
            fs::read_to_string(format!("/proc/{host}/task/{host}/children")).unwrap_or_default();
        let mut tree: Vec<u32> = children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect();
        tree.retain(|pid| *pid != own);
        tree.push(host);
        let target = tree[turn % tree.len()];
        turn += 1;
        // A process that just ended needs no stopping.
        if child::signal(target, Signal::STOP).is_ok() {
            std::thread::sleep(pause());
            let _ = child::signal(target, Signal::CONT);
        }
    }
}
