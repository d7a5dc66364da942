//! Events of `perf_event_open`, as far as they are needed here.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

/// Bytes of the attributes: their first published form, which every kernel takes.
const ATTR_SIZE: u32 = 64;
/// Does not count before it is told to.
const DISABLED: u64 = 1;
/// `PERF_TYPE_SOFTWARE` and `PERF_TYPE_TRACEPOINT` of `linux/perf_event.h`.
const SOFTWARE: u32 = 1;
const TRACEPOINT: u32 = 2;
/// `PERF_COUNT_SW_CPU_CLOCK`.
const CPU_CLOCK: u64 = 0;
/// `PERF_FLAG_FD_CLOEXEC`.
const CLOSE_ON_EXEC: libc::c_ulong = 8;
/// `PERF_EVENT_IOC_ENABLE` and `PERF_EVENT_IOC_SET_BPF`.
const ENABLE: libc::c_ulong = 0x2400;
const SET_PROGRAM: libc::c_ulong = 0x4004_2408;

/// `struct perf_event_attr`, its first published form.
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
pub(crate) fn can_sample() -> io::Result<()> {
    open(SOFTWARE, CPU_CLOCK).map(drop)
}

/// The event of the tracepoint with this number, of all processes.
pub(crate) fn open_event(tracepoint: u64) -> io::Result<OwnedFd> {
    open(TRACEPOINT, tracepoint)
}

/// Runs a program at the tracepoint of the event, for as long as that is open.
pub(super) fn run_at(event: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<()> {
    let control = |request, argument: libc::c_int| {
        // SAFETY: the event is open, and both requests take a plain number.
        match unsafe { libc::ioctl(event.as_raw_fd(), request, argument) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    control(SET_PROGRAM, program.as_raw_fd())?;
    control(ENABLE, 0)
}

/// Of all processes on the first CPU; a program at a tracepoint runs on all of them.
fn open(kind: u32, config: u64) -> io::Result<OwnedFd> {
    let attributes = Attributes {
        kind,
        size: ATTR_SIZE,
        config,
        flags: DISABLED,
        ..Attributes::default()
    };
    let all_processes: libc::pid_t = -1;
    let first_cpu: libc::c_int = 0;
    let no_group: libc::c_int = -1;
    // SAFETY: the structure is as long as its `size` says and lives through the call; the rest are numbers.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            all_processes,
            first_cpu,
            no_group,
            CLOSE_ON_EXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: made above, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}
