//! Atomic instructions of BPF, which `core` does not offer for the target.

/// Replaces the word at `at` if it is `expected`. From 5.12.
///
/// # Safety
/// `at` points to an aligned word that programs and daemon only access whole.
#[inline(always)]
pub unsafe fn compare_exchange(at: *mut u64, expected: u64, new: u64) -> bool {
    #[cfg(target_arch = "bpf")]
    {
        let was: u64;
        // SAFETY: as for the caller; the instruction takes the expected value in r0 and leaves the old one there.
        unsafe {
            core::arch::asm!(
                "r0 = cmpxchg_64({at} + 0, r0, {new})",
                at = in(reg) at,
                new = in(reg) new,
                inlateout("r0") expected => was,
                options(nostack),
            );
        }
        was == expected
    }
    // For checks on the machine that compiles.
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU64, Ordering};
        // SAFETY: as for the caller.
        let word = unsafe { AtomicU64::from_ptr(at) };
        word.compare_exchange(expected, new, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }
}

/// Adds to the word at `at`. On every kernel.
///
/// # Safety
/// As for [`compare_exchange`].
#[inline(always)]
pub unsafe fn add(at: *mut u64, more: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: as for the caller.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({at} + 0) += {more}",
            at = in(reg) at,
            more = in(reg) more,
            options(nostack),
        );
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU64, Ordering};
        // SAFETY: as for the caller.
        unsafe { AtomicU64::from_ptr(at) }.fetch_add(more, Ordering::Relaxed);
    }
}
