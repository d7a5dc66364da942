//! Surviving a file that shrinks while it is mapped.
//!
//! A load from a page that the file no longer has raises SIGBUS. The process-wide handler here looks whether the address
//! lies in a registered mapping; if so it lays zeroed anonymous memory over the whole of it, marks it and returns, and
//! the load gives 0. That is how libwayland guards the buffers of its clients. Any other SIGBUS goes to whom it went
//! before.

use std::{
    ffi::c_int,
    io,
    mem::MaybeUninit,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

/// Mappings that can be guarded at once.
pub(super) const MAX_GUARDED: usize = 64;

static RANGES: [Range; MAX_GUARDED] = [const { Range::new() }; MAX_GUARDED];
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();

/// A registered mapping. `end` 0 means that the entry is free.
#[derive(Debug)]
struct Range {
    taken: AtomicBool,
    start: AtomicUsize,
    end: AtomicUsize,
    faulted: AtomicBool,
}

impl Range {
    const fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            faulted: AtomicBool::new(false),
        }
    }
}

/// Keeps one mapping registered. Must be dropped before the range is unmapped.
#[derive(Debug)]
pub(super) struct Guard {
    range: &'static Range,
}

impl Guard {
    /// Registers `bytes` at `start`, both multiples of the page size; `None` if the table is full.
    ///
    /// The caller owns that range of addresses, holds a read-only mapping there, and touches it only while it holds
    /// the guard.
    pub(super) fn register(start: *const u8, bytes: usize) -> io::Result<Option<Self>> {
        if let Err(errno) = INSTALLED.get_or_init(install) {
            return Err(io::Error::from_raw_os_error(*errno));
        }
        // Acquire/Release on `taken`: a new owner's stores to the range come after the old owner's (see `drop`).
        let free = RANGES.iter().find(|range| {
            range
                .taken
                .compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        });
        Ok(free.map(|range| {
            range.faulted.store(false, Ordering::Relaxed);
            range.start.store(start.addr(), Ordering::Relaxed);
            // Release: whoever sees this end (the handler's Acquire load) sees the start and the flag that belong to it.
            range.end.store(start.addr() + bytes, Ordering::Release);
            Self { range }
        }))
    }

    /// Whether the mapping was lost to a fault: it reads as zeros since.
    pub(super) fn has_faulted(&self) -> bool {
        // Relaxed: the flag is set by the handler in the thread that faulted, which is either this one or one whose
        // result reaches this one by other means; it only ever goes up.
        self.range.faulted.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Release, with the handler's Acquire: a handler that still sees the old end runs in a thread that loads from
        // the mapping, and there is none once the owner drops it.
        self.range.end.store(0, Ordering::Release);
        self.range.taken.store(false, Ordering::Release);
    }
}

fn install() -> Result<(), i32> {
    // SAFETY: a zeroed sigaction is a valid value; the handler is async-signal-safe (atomics, mmap and errno only) and
    // stays for the life of the process.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction =
            on_sigbus as extern "C" fn(c_int, *mut libc::siginfo_t, *mut libc::c_void) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
        // Ask first, so that the handler never runs without knowing its predecessor.
        if libc::sigaction(libc::SIGBUS, std::ptr::null(), previous.as_mut_ptr()) != 0 {
            return Err(*libc::__errno_location());
        }
        let _first = PREVIOUS.set(previous.assume_init());
        if libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) != 0 {
            return Err(*libc::__errno_location());
        }
    }
    Ok(())
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler, and for a fault it has an address.
    let address = unsafe { (*info).si_addr() }.addr();
    for range in &RANGES {
        // Acquire: see `Guard::register`.
        let end = range.end.load(Ordering::Acquire);
        let start = range.start.load(Ordering::Relaxed);
        if address < start || address >= end {
            continue;
        }
        // SAFETY: errno is thread-local and restored, since the interrupted code may be about to read it. The range is
        // a mapping of ours that is not unmapped while a thread (this one) loads from it; only loads are ever made
        // from it, so putting zeroed memory in its place breaks no invariant. mmap is a plain system call on Linux.
        let replaced = unsafe {
            let errno = *libc::__errno_location();
            let mapped = libc::mmap(
                std::ptr::with_exposed_provenance_mut(start),
                end - start,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            );
            *libc::__errno_location() = errno;
            mapped != libc::MAP_FAILED
        };
        if replaced {
            range.faulted.store(true, Ordering::Relaxed);
            return;
        }
    }
    pass_on(signal, info, context);
}

/// Not ours: what would have happened without the handler, happens.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let previous = PREVIOUS.get();
    let handler = previous.map_or(libc::SIG_DFL, |action| action.sa_sigaction);
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        // SAFETY: restores the default; the faulting instruction runs again and ends the process as it should.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    let with_info = previous.is_some_and(|action| action.sa_flags & libc::SA_SIGINFO != 0);
    // SAFETY: `handler` is the address of the handler that was installed before, of the kind that its flags say.
    unsafe {
        if with_info {
            let call: extern "C" fn(c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                std::mem::transmute::<usize, _>(handler);
            call(signal, info, context);
        } else {
            let call: extern "C" fn(c_int) = std::mem::transmute::<usize, _>(handler);
            call(signal);
        }
    }
}
