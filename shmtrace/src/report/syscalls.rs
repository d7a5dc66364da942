//! Names of system calls and errors, for people.

/// The name of a system call of this machine's architecture.
pub fn syscall_name(number: u16) -> String {
    syscalls::Sysno::new(usize::from(number)).map_or_else(
        || format!("syscall {number}"),
        |call| call.name().to_owned(),
    )
}

/// The name of a negated errno, as strace shows it.
pub fn errno_name(result: i32) -> String {
    let errno = errno_of(result);
    errno.map_or_else(|| format!("errno {}", result.unsigned_abs()), str::to_owned)
}

fn errno_of(result: i32) -> Option<&'static str> {
    // The least number has no negation, and a recording may say anything.
    Some(match result.checked_neg()? {
        libc::EPERM => "EPERM",
        libc::EINTR => "EINTR",
        libc::EIO => "EIO",
        libc::EBADF => "EBADF",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EFAULT => "EFAULT",
        libc::EINVAL => "EINVAL",
        libc::EPIPE => "EPIPE",
        libc::ENOTSOCK => "ENOTSOCK",
        libc::EMSGSIZE => "EMSGSIZE",
        libc::ENOBUFS => "ENOBUFS",
        libc::EISCONN => "EISCONN",
        libc::ENOTCONN => "ENOTCONN",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::ECONNREFUSED => "ECONNREFUSED",
        libc::ECONNRESET => "ECONNRESET",
        libc::ESHUTDOWN => "ESHUTDOWN",
        // ERESTARTSYS and its kin: the call is taken up again after a signal; the program never sees them.
        512..=516 => "ERESTART",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn names_are_those_of_the_kernel() {
        assert_eq!(syscall_name(44), "sendto");
        assert_eq!(syscall_name(232), "epoll_wait");
        assert_eq!(syscall_name(60_000), "syscall 60000");
    }

    #[test]
    fn errors_are_named_or_numbered() {
        assert_eq!(errno_name(-libc::ECONNREFUSED), "ECONNREFUSED");
        assert_eq!(errno_name(-512), "ERESTART");
        assert_eq!(errno_name(-9999), "errno 9999");
        assert_eq!(errno_name(i32::MIN), "errno 2147483648");
    }
}
