//! System call numbers of the calls that the probes look at, by architecture.
#![expect(missing_docs, reason = "the names are those of the system calls")]

/// Which of an architecture's calls wait for fds.
macro_rules! waits_for_fds {
    () => {
        /// Whether a call waits for fds: epoll, poll or select.
        pub const fn waits_for_fds(number: u16) -> bool {
            matches!(
                number,
                EPOLL_WAIT | EPOLL_PWAIT | EPOLL_PWAIT2 | POLL | PPOLL | SELECT | PSELECT6
            )
        }
    };
}

/// `x86_64`.
pub mod x86_64 {
    waits_for_fds!();

    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const CLOSE: u16 = 3;
    pub const POLL: u16 = 7;
    pub const MMAP: u16 = 9;
    pub const SELECT: u16 = 23;
    pub const DUP2: u16 = 33;
    pub const SENDTO: u16 = 44;
    pub const RECVFROM: u16 = 45;
    pub const SENDMSG: u16 = 46;
    pub const RECVMSG: u16 = 47;
    pub const FUTEX: u16 = 202;
    pub const EPOLL_WAIT: u16 = 232;
    pub const PSELECT6: u16 = 270;
    pub const PPOLL: u16 = 271;
    pub const EPOLL_PWAIT: u16 = 281;
    pub const DUP3: u16 = 292;
    pub const RECVMMSG: u16 = 299;
    pub const SENDMMSG: u16 = 307;
    pub const CLOSE_RANGE: u16 = 436;
    pub const EPOLL_PWAIT2: u16 = 441;
}

/// aarch64; a call that does not exist there has a number that no call has.
pub mod aarch64 {
    waits_for_fds!();

    pub const DUP3: u16 = 24;
    pub const DUP2: u16 = 0xfff3;
    pub const CLOSE: u16 = 57;
    pub const CLOSE_RANGE: u16 = 436;
    pub const READ: u16 = 63;
    pub const WRITE: u16 = 64;
    pub const POLL: u16 = 0xfff0;
    pub const MMAP: u16 = 222;
    pub const SELECT: u16 = 0xfff1;
    pub const SENDTO: u16 = 206;
    pub const RECVFROM: u16 = 207;
    pub const SENDMSG: u16 = 211;
    pub const RECVMSG: u16 = 212;
    pub const FUTEX: u16 = 98;
    pub const EPOLL_WAIT: u16 = 0xfff2;
    pub const PSELECT6: u16 = 72;
    pub const PPOLL: u16 = 73;
    pub const EPOLL_PWAIT: u16 = 22;
    pub const RECVMMSG: u16 = 243;
    pub const SENDMMSG: u16 = 269;
    pub const EPOLL_PWAIT2: u16 = 441;
}
