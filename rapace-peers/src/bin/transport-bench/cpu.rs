//! Processors: who runs where, and what keeps them awake.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Context as _;
use rustix::thread::{CpuSet, sched_setaffinity};

/// Keeps the calling thread, and those that it starts, on one processor.
pub(crate) fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("no processor {cpu} for us"))
}

/// Threads that run when nobody else wants to, so that a processor never halts: a halted virtual one takes longer to
/// wake than everything that is measured here.
pub(crate) struct Spinners {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Spinners {
    pub(crate) fn start(cpus: &[usize]) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = cpus
            .iter()
            .map(|cpu| {
                let (stop, cpu) = (Arc::clone(&stop), *cpu);
                std::thread::Builder::new()
                    .name("spinner".into())
                    .spawn(move || {
                        if pin(cpu).is_err() || !idle_class() {
                            return;
                        }
                        // Relaxed: only has to be seen at some time.
                        while !stop.load(Ordering::Relaxed) {
                            std::hint::spin_loop();
                        }
                    })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { stop, threads })
    }
}

impl Drop for Spinners {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ended = thread.join();
        }
    }
}

/// `SCHED_IDLE`, for the calling thread.
fn idle_class() -> bool {
    let nothing = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameter is valid for the call; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const nothing) == 0 }
}
