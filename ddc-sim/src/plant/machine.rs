//! What the machine does to a build: no processor, no memory.

use std::fs;
use std::hint::black_box;
use std::process::{Child, Command};

use anyhow::{Context as _, ensure};
use rustix::thread::CpuSet;
use sim_kit::{child, look};

use super::{Heal, Placed, Scene};
use crate::group::Group;
use crate::order::Order;

/// Busy processes that compete with a starved plugin: each weighs 1024 where it weighs 3.
const HOGS: usize = 12;
/// The memory limit of the variant with a control group; the hub's pages and the processes need a fraction of it.
const MEMORY_LIMIT: u64 = 64 << 20;
/// Microseconds of processor time per second that the variant `quota` leaves.
const QUOTA_US: u64 = 1000;
/// That second, in microseconds.
const PERIOD_US: u64 = 1_000_000;

/// Children that end with this.
struct Children(Vec<Child>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Gone already or ended now: either is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Scene<'_> {
    pub(super) async fn starved(&self) -> anyhow::Result<Placed> {
        let cpu = first_cpu()?;
        let pid = self.peer.pid;
        if self.spec.variant == "quota" {
            let group = Group::create("cpu", "starved")?;
            group.limit_cpu(QUOTA_US, PERIOD_US)?;
            let mut hog = start_role(&["hog"])?;
            group.add(pid)?;
            group.add(hog.id())?;
            ensure!(hog.try_wait()?.is_none(), "the hog ended");
            // In this order: a group can be removed once it is empty.
            self.host.keep(Children(vec![hog]));
            self.host.keep(group);
        } else {
            self.order(Order::RunLast(cpu)).await?;
            let cpu = format!("--cpu={cpu}");
            let hogs: Result<Vec<_>, _> = (0..HOGS).map(|_| start_role(&["hog", &cpu])).collect();
            self.host.keep(Children(hogs?));
        }
        // Calls without end, each of which the plugin is woken for and gets no processor to answer.
        let (peer, host) = (self.peer.clone(), self.host.clone());
        tokio::spawn(async move {
            loop {
                let request = super::Message {
                    id: host.totals.next_id(),
                    channel: 1,
                    method: 0,
                    payload: vec![7; 16],
                };
                if peer.call(request).await.is_err() {
                    return;
                }
            }
        });
        let mut runnable = 0;
        let waits = || {
            let wants = look::threads(pid)
                .is_ok_and(|threads| threads.iter().any(|thread| thread.state == 'R'));
            runnable = if wants { runnable + 1 } else { 0 };
            runnable >= 20
        };
        self.expect("a plugin that wants to run and does not", waits)
            .await?;
        Ok(Placed::new(Vec::new(), Heal::Never))
    }

    pub(super) async fn memory_limit(&self) -> anyhow::Result<Placed> {
        let group = Group::create("memory", "limit")?;
        group.limit_memory(MEMORY_LIMIT)?;
        // The whole tree, as a scope with a memory limit holds it.
        group.add(std::process::id())?;
        for seat in &self.host.seats {
            group.add(seat.peer().pid)?;
        }
        let eater = start_role(&["eat-memory", &format!("--bytes={}", 2 * MEMORY_LIMIT)])?;
        group.add(eater.id())?;
        let mut eater = Children(vec![eater]);
        // It starts to eat when it is told, which is once it is in the group.
        let pid = eater.0[0].id();
        self.expect("an eater that waits", || look::is_stopped(pid))
            .await?;
        child::signal(pid, rustix::process::Signal::CONT)?;
        let status = eater.0[0].wait().context("waiting for the eater")?;
        ensure!(
            !status.success(),
            "the eater got {} bytes past the limit",
            2 * MEMORY_LIMIT
        );
        self.host.keep(group);
        Ok(Placed::new(Vec::new(), Heal::Never))
    }
}

/// The first processor that we may use.
fn first_cpu() -> anyhow::Result<u32> {
    let allowed = rustix::thread::sched_getaffinity(None).context("asking for our processors")?;
    let cpu = (0..CpuSet::MAX_CPU)
        .find(|cpu| allowed.is_set(*cpu))
        .context("we may use no processor")?;
    Ok(cpu as u32)
}

/// Starts this program again in a helping role.
fn start_role(arguments: &[&str]) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe().context("finding our own program")?);
    command.args(arguments);
    child::die_with_parent(&mut command, &[]);
    command
        .spawn()
        .with_context(|| format!("starting {arguments:?}"))
}

/// The role `hog`: uses a processor up.
pub(crate) fn hog(cpu: Option<u32>) -> anyhow::Result<()> {
    if let Some(cpu) = cpu {
        let mut only = CpuSet::new();
        only.set(cpu as usize);
        rustix::thread::sched_setaffinity(None, &only).context("binding to the processor")?;
    }
    let mut n = 0u64;
    loop {
        n = black_box(n.wrapping_add(1));
    }
}

/// The role `eat-memory`: stops, and once continued touches this much memory.
pub(crate) fn eat_memory(bytes: usize) -> anyhow::Result<()> {
    // Preferred by the OOM killer over the plugins. Without the right to say so it is chosen for its size.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP)?;
    let mut eaten: Vec<u8> = Vec::new();
    eaten.try_reserve_exact(bytes).context("reserving memory")?;
    for _ in 0..bytes / 4096 {
        eaten.resize(eaten.len() + 4096, 1);
    }
    black_box(&eaten);
    Ok(())
}
