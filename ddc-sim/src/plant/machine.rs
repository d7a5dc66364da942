//! What the machine does to a build: no processor, no memory.

use std::fs;
use std::hint::black_box;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context as _, bail, ensure};
use rustix::thread::CpuSet;
use sim_kit::{child, look};

use super::{Heal, Placed, Scene};
use crate::order::Order;

/// Busy processes that compete with a starved plugin: each weighs 1024 where it weighs 3.
const HOGS: usize = 4;
/// The memory limit of the variant with a control group; the hub's pages and the processes need a fraction of it.
const MEMORY_LIMIT: u64 = 64 << 20;
/// Microseconds of processor time per second that the variant `quota` leaves.
const QUOTA_US: u64 = 1000;

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
            group.limit_cpu(QUOTA_US)?;
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

/// A control group of our own, in the hierarchy (v1) or the tree (v2) that has the controller.
struct Group {
    path: PathBuf,
    parent: PathBuf,
    unified: bool,
}

impl Group {
    fn create(controller: &str, purpose: &str) -> anyhow::Result<Self> {
        let own =
            fs::read_to_string("/proc/self/cgroup").context("asking for our control group")?;
        let name = format!("ddc-sim-{}-{purpose}", std::process::id());
        let root = PathBuf::from("/sys/fs/cgroup");
        for entry in own.lines() {
            let mut fields = entry.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
                continue;
            };
            let unified = controllers.is_empty();
            if !unified && !controllers.split(',').any(|each| each == controller) {
                continue;
            }
            let mount = if unified {
                root.clone()
            } else {
                root.join(controller)
            };
            let inside = mount.join(path.trim_start_matches('/'));
            // In a container the path may be one that only the outside knows. In the unified tree a group with
            // processes cannot hand controllers on, and the nearest one that does is further up.
            let parents = inside
                .ancestors()
                .take_while(|parent| parent.starts_with(&mount))
                .filter(|dir| dir.is_dir());
            let found = parents.map(PathBuf::from).find_map(|parent| {
                let path = parent.join(&name);
                make_group(&parent, &path, controller, unified).then_some((parent, path))
            });
            if let Some((parent, path)) = found {
                return Ok(Self {
                    path,
                    parent,
                    unified,
                });
            }
        }
        bail!(
            "no control group can be made with the controller {controller}: root is needed, and a controller in use"
        )
    }

    fn write(&self, file: &str, value: &str) -> anyhow::Result<()> {
        let path = self.path.join(file);
        fs::write(&path, value).with_context(|| format!("writing {value:?} to {}", path.display()))
    }

    fn limit_cpu(&self, per_second_us: u64) -> anyhow::Result<()> {
        if self.unified {
            return self.write("cpu.max", &format!("{per_second_us} 1000000"));
        }
        self.write("cpu.cfs_period_us", "1000000")?;
        self.write("cpu.cfs_quota_us", &per_second_us.to_string())
    }

    fn limit_memory(&self, bytes: u64) -> anyhow::Result<()> {
        let file = if self.unified {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        self.write(file, &bytes.to_string())
    }

    fn add(&self, pid: u32) -> anyhow::Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Whoever is still inside goes back to where we are.
        for pid in fs::read_to_string(self.path.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
        {
            let _ = fs::write(self.parent.join("cgroup.procs"), pid);
        }
        if let Err(error) = remove_group(&self.path) {
            eprintln!(
                "control group {} is left behind: {error}",
                self.path.display()
            );
        }
    }
}

/// Makes the folder; false, with nothing left, where the controller does not come with it.
fn make_group(parent: &Path, path: &Path, controller: &str, unified: bool) -> bool {
    if fs::create_dir(path).is_err() {
        return false;
    }
    let probe = path.join(match (controller, unified) {
        ("cpu", true) => "cpu.max",
        ("cpu", false) => "cpu.cfs_quota_us",
        (_, true) => "memory.max",
        (_, false) => "memory.limit_in_bytes",
    });
    if unified && !probe.exists() {
        // Refused where the parent has processes of its own.
        let _ = fs::write(
            parent.join("cgroup.subtree_control"),
            format!("+{controller}"),
        );
    }
    let made = probe.exists();
    if !made {
        let _ = fs::remove_dir(path);
    }
    made
}

/// A group stays busy for a moment after its last process ended.
fn remove_group(path: &Path) -> io::Result<()> {
    let mut result = fs::remove_dir(path);
    for _ in 0..100 {
        if result.is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
        result = fs::remove_dir(path);
    }
    result
}
