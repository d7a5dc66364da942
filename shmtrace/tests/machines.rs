//! What differs from machine to machine: the numbers of system calls, which probes and daemon are compiled with.

use shmtrace_common::syscalls;

/// Compares the named constants with the kernel's own table for that machine.
macro_rules! same_numbers {
    ($machine:ident: $($ours:ident $theirs:ident),* $(,)?) => {
        $(assert_eq!(
            u32::from(syscalls::$machine::$ours),
            ::syscalls::$machine::Sysno::$theirs as u32,
            concat!(stringify!($machine), " ", stringify!($theirs))
        );)*
    };
}

#[test]
fn numbers_of_x86_64() {
    same_numbers!(x86_64: READ read, WRITE write, CLOSE close, POLL poll, MMAP mmap, SELECT select, DUP2 dup2,
        SENDTO sendto, RECVFROM recvfrom, SENDMSG sendmsg, RECVMSG recvmsg, FUTEX futex, EPOLL_WAIT epoll_wait,
        PSELECT6 pselect6, PPOLL ppoll, EPOLL_PWAIT epoll_pwait, DUP3 dup3, RECVMMSG recvmmsg, SENDMMSG sendmmsg,
        CLOSE_RANGE close_range, EPOLL_PWAIT2 epoll_pwait2);
}

#[test]
fn numbers_of_aarch64() {
    same_numbers!(aarch64: READ read, WRITE write, CLOSE close, MMAP mmap, SENDTO sendto, RECVFROM recvfrom,
        SENDMSG sendmsg, RECVMSG recvmsg, FUTEX futex, PSELECT6 pselect6, PPOLL ppoll, EPOLL_PWAIT epoll_pwait, DUP3 dup3,
        RECVMMSG recvmmsg, SENDMMSG sendmmsg, CLOSE_RANGE close_range, EPOLL_PWAIT2 epoll_pwait2);
}

/// aarch64 has no `epoll_wait`, `poll`, `select` and `dup2`; their names must stand for no call that it has.
#[test]
fn what_aarch64_lacks_has_the_number_of_no_call() {
    use syscalls::aarch64::{DUP2, EPOLL_WAIT, POLL, SELECT};
    for number in [DUP2, EPOLL_WAIT, POLL, SELECT] {
        assert_eq!(::syscalls::aarch64::Sysno::new(number.into()), None);
    }
}

#[test]
fn a_sleep_in_epoll_pwait_waits_for_fds_on_both() {
    assert!(syscalls::aarch64::waits_for_fds(22));
    assert!(syscalls::x86_64::waits_for_fds(281));
    assert!(syscalls::x86_64::waits_for_fds(232));
    // The number of the one is another call on the other.
    assert!(!syscalls::aarch64::waits_for_fds(281));
    assert!(!syscalls::aarch64::waits_for_fds(232));
    assert!(!syscalls::x86_64::waits_for_fds(22));
    for other in [syscalls::aarch64::FUTEX, syscalls::aarch64::RECVFROM] {
        assert!(!syscalls::aarch64::waits_for_fds(other));
    }
}
