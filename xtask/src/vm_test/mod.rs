//! `cargo xtask vm-test`: the daemon on kernels that this machine does not run, emulated by QEMU.
//!
//! Each kernel boots into a root file system that has the programs, busybox and a list of steps; how the steps end
//! is compared with what that kernel promises. A panic, a hang and a step that did not run are failures like any other.

mod initramfs;
mod kernels;
mod machine;
mod scenario;
mod systemd;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{apt, setup, workspace};
use initramfs::Initramfs;
use kernels::{Apt, KERNELS, Kernel};
use machine::Step;

#[derive(Args)]
pub(crate) struct VmTest {
    /// Only these machines, such as 5.10
    #[arg(long, value_name = "NAME")]
    kernel: Vec<String>,
    /// Only steps with this in their names
    #[arg(long, value_name = "NAME")]
    step: Option<String>,
    /// How many machines run at once; each has two processors
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// How long a machine may take, in seconds
    #[arg(long, default_value_t = 300)]
    limit: u64,
}

impl VmTest {
    pub(crate) fn run(&self) -> Result<()> {
        setup::run()?;
        apt::install(&[
            "qemu-system-x86",
            "busybox-static",
            "xz-utils",
            "debian-archive-keyring",
            "systemd",
            "dbus-daemon",
        ])?;
        workspace::build_release(&["shmtrace", "ddc-sim", "rapace-peers"])?;

        let chosen: Vec<&Kernel> = KERNELS.iter().filter(|kernel| self.wants(kernel)).collect();
        if chosen.is_empty() {
            bail!(
                "none of the kernels is asked for: there are {}",
                KERNELS.map(|kernel| kernel.name).join(", ")
            );
        }
        let folder = workspace::built("vm");
        let apt = Apt::new(&folder)?;
        let mut machines = Vec::new();
        for kernel in chosen {
            let mut steps = scenario::steps(kernel);
            steps.retain(|step| {
                self.step
                    .as_ref()
                    .is_none_or(|word| step.name.contains(word))
            });
            if !steps.is_empty() {
                machines.push((kernel, prepare(&apt, kernel, steps, &folder)?));
            }
        }
        if machines.is_empty() {
            let all = KERNELS.iter().flat_map(scenario::steps);
            let names: BTreeSet<&str> = all.map(|step| step.name).collect();
            let names: Vec<&str> = names.into_iter().collect();
            bail!(
                "none of the steps is asked for: there are {}",
                names.join(", ")
            );
        }
        let failed = self.run_all(machines);
        if failed > 0 {
            bail!(
                "{failed} kernels failed; what they said is in {}",
                folder.display()
            );
        }
        Ok(())
    }

    fn wants(&self, kernel: &Kernel) -> bool {
        self.kernel.is_empty() || self.kernel.iter().any(|wanted| wanted == kernel.name)
    }

    /// Runs the machines and prints how each did; returns how many failed.
    fn run_all(&self, machines: Vec<(&Kernel, Machine)>) -> usize {
        let count = machines.len();
        let waiting = Mutex::new(machines.into_iter());
        let failed = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..self.jobs.clamp(1, count) {
                scope.spawn(|| {
                    while let Some((kernel, machine)) = next(&waiting) {
                        match self.run_one(kernel, &machine) {
                            Ok(said) => println!("ok      {said}"),
                            Err(error) => {
                                println!("FAILED  {}: {error:#}", kernel.name);
                                // A count, read after the scope has joined everybody: nothing is ordered by it.
                                failed.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
        });
        failed.into_inner()
    }

    fn run_one(&self, kernel: &Kernel, machine: &Machine) -> Result<String> {
        let report = machine::run(
            &machine.image,
            &machine.initramfs,
            &machine.folder,
            Duration::from_secs(self.limit),
        )?;
        let said = scenario::judge(kernel, &report, &machine.steps)
            .with_context(|| report.kernel.clone())?;
        Ok(format!(
            "{} ({}) in {:.0} s: {said}",
            kernel.name,
            report.kernel,
            report.took.as_secs_f64()
        ))
    }
}

fn next<T>(waiting: &Mutex<impl Iterator<Item = T>>) -> Option<T> {
    waiting
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .next()
}

/// What a machine boots and does, and where it writes.
struct Machine {
    steps: Vec<Step>,
    image: PathBuf,
    initramfs: PathBuf,
    folder: PathBuf,
}

fn prepare(apt: &Apt, kernel: &Kernel, steps: Vec<Step>, folder: &Path) -> Result<Machine> {
    let unpacked = apt.fetch(kernel)?;
    let folder = folder.join(format!("run-{}", kernel.name));
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;

    let mut archive = Initramfs::default();
    archive.add("init", include_bytes!("init.sh").to_vec());
    archive.program(&busybox()?, "bin/busybox")?;
    let built = workspace::built("release");
    for program in scenario::PROGRAMS {
        archive.program(&built.join(program), &format!("bin/{program}"))?;
    }
    for (order, module) in unpacked
        .modules
        .iter()
        .filter(|_| kernel.unix_diag)
        .enumerate()
    {
        archive.copy(module, &format!("modules/{order:02}.ko"))?;
    }
    if kernel.systemd {
        systemd::add_to(&mut archive)?;
    }
    let lines: String = steps.iter().map(machine::line).collect();
    archive.add("steps", lines.into_bytes());
    let initramfs = folder.join("initramfs.cpio");
    archive.write(&initramfs)?;
    Ok(Machine {
        steps,
        image: unpacked.image,
        initramfs,
        folder,
    })
}

fn busybox() -> Result<PathBuf> {
    let places = ["/usr/bin/busybox", "/bin/busybox"].map(PathBuf::from);
    places
        .into_iter()
        .find(|place| place.exists())
        .context("no busybox: apt-get install busybox-static")
}
