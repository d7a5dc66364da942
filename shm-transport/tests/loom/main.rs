//! Every interleaving and every allowed reordering of the protocol, by loom: the files of the crate are compiled here
//! with loom's atomics in place of the processor's. Each model has a broken variant beside it that loom must catch,
//! so that a model that looks at nothing cannot pass.

mod lane;
mod lost_slots;
mod slots;

#[path = "../../src/claim.rs"]
mod claim;
#[expect(
    dead_code,
    unreachable_pub,
    reason = "the whole format, as the crate has it; the models need little of it"
)]
#[path = "../../src/layout.rs"]
mod layout;
#[path = "../../src/lost.rs"]
mod lost;
#[expect(dead_code, reason = "reclaiming is done behind a lock, alone")]
#[path = "../../src/moves.rs"]
mod moves;
#[path = "../../src/ring.rs"]
mod ring;
#[path = "../../src/stack.rs"]
mod stack;

/// What the files take their atomics from.
mod sync {
    use std::sync::atomic::AtomicBool as Switch;

    use loom::sync::atomic::AtomicBool;
    pub(crate) use loom::sync::atomic::{AtomicU32, Ordering};

    /// Set by a broken variant, in a process of its own.
    pub(crate) static WITHOUT_FENCES: Switch = Switch::new(false);

    pub(crate) fn fence(order: Ordering) {
        if !WITHOUT_FENCES.load(Ordering::Relaxed) {
            loom::sync::atomic::fence(order);
        }
    }

    /// Loom tries both orders of two operations if it knows that one may change what the other sees, but of each atomic
    /// it remembers the last operation only: one's own load, as before each exchange, hides the loads of others from it.
    /// So each operation also changes something that nobody looks at, right before: loom remembers the last change too.
    /// It is relaxed, so it orders nothing.
    #[derive(Debug)]
    pub(crate) struct AtomicU64 {
        value: loom::sync::atomic::AtomicU64,
        touched: AtomicBool,
    }

    impl AtomicU64 {
        pub(crate) fn new(value: u64) -> Self {
            Self {
                value: loom::sync::atomic::AtomicU64::new(value),
                touched: AtomicBool::new(false),
            }
        }

        fn touch(&self) -> &loom::sync::atomic::AtomicU64 {
            self.touched.swap(true, Ordering::Relaxed);
            &self.value
        }

        pub(crate) fn load(&self, order: Ordering) -> u64 {
            self.touch().load(order)
        }

        pub(crate) fn store(&self, value: u64, order: Ordering) {
            self.touch().store(value, order);
        }

        pub(crate) fn compare_exchange(
            &self,
            current: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            self.touch()
                .compare_exchange(current, new, success, failure)
        }

        pub(crate) fn compare_exchange_weak(
            &self,
            current: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            self.compare_exchange(current, new, success, failure)
        }
    }
}

use std::env;
use std::process::Command;

/// Loom must find this failure in this model. It runs in a process of its own, since loom cannot always unwind.
fn caught(test: &str, failure: &str, model: impl Fn() + Sync + Send + 'static) {
    if env::var_os("BROKEN_MODEL").is_some() {
        bounded(3).check(model);
        return;
    }
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("BROKEN_MODEL", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success(),
        "the broken variant was not caught"
    );
    assert!(
        said.contains(failure),
        "caught, but not for {failure:?}: {said}"
    );
}

fn bounded(preemptions: usize) -> loom::model::Builder {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder
}
