//! The software clock of each CPU, whose ticks are samples.

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd},
};

/// Bytes of the first version of `struct perf_event_attr`, which every kernel takes.
const ATTR_SIZE: u32 = 64;
const PERF_TYPE_SOFTWARE: u32 = 1;
const PERF_COUNT_SW_CPU_CLOCK: u64 = 0;
/// Bit 0 of the flags: made, but not counting.
const DISABLED: u64 = 1;

/// The first version of `struct perf_event_attr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    breakpoint_type: u32,
    breakpoint: u64,
}

const _: () = assert!(size_of::<Attributes>() == ATTR_SIZE as usize);

/// Whether this process may sample whole CPUs, which is what seeing a tree with all its future children takes.
pub fn can_sample() -> io::Result<()> {
    let attributes = Attributes {
        kind: PERF_TYPE_SOFTWARE,
        size: ATTR_SIZE,
        config: PERF_COUNT_SW_CPU_CLOCK,
        flags: DISABLED,
        ..Attributes::default()
    };
    let all_processes: libc::pid_t = -1;
    let first_cpu: libc::c_int = 0;
    let no_group: libc::c_int = -1;
    let close_on_exec: libc::c_ulong = 8;
    // SAFETY: the structure is as long as its `size` says and lives through the call; the rest are numbers.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            all_processes,
            first_cpu,
            no_group,
            close_on_exec,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: made above, and nobody else has it.
    drop(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) });
    Ok(())
}
