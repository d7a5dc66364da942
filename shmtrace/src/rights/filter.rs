//! System calls that this program has no use for any more: a seccomp filter refuses them with EPERM.
//!
//! It names what is refused and not what is allowed. A list of allowed calls would have to know every call that some libc
//! of some year makes, and a watch that breaks in the middle of a hang is worth less than one that may still `mincore`.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};

use super::Role;

/// Nobody here needs these: they change the machine, or processes that are not ours.
const NEVER: &[c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mknodat,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_openat2,
    libc::SYS_personality,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_writev,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_truncate,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

/// What of these some machines only have.
#[cfg(target_arch = "x86_64")]
const NEVER_HERE: &[c_long] = &[libc::SYS_ioperm, libc::SYS_iopl, libc::SYS_mknod];
#[cfg(not(target_arch = "x86_64"))]
const NEVER_HERE: &[c_long] = &[];

/// Only `run` has somebody to signal, to hold still and to tidy up after, and asks systemd by way of `busctl`.
const FOR_RUN: &[c_long] = &[
    libc::SYS_connect,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_kill,
    libc::SYS_pidfd_send_signal,
    libc::SYS_ptrace,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_unlinkat,
];
#[cfg(target_arch = "x86_64")]
const FOR_RUN_HERE: &[c_long] = &[libc::SYS_rmdir, libc::SYS_unlink];
#[cfg(not(target_arch = "x86_64"))]
const FOR_RUN_HERE: &[c_long] = &[];

/// Only the helper enters namespaces and opens events.
const FOR_HELPER: &[c_long] = &[libc::SYS_setns, libc::SYS_perf_event_open];

/// What changes files, beside opening them for it.
const FOR_FILES: &[c_long] = &[
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_linkat,
    libc::SYS_mkdirat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_symlinkat,
];
#[cfg(target_arch = "x86_64")]
const FOR_FILES_HERE: &[c_long] = &[
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_creat,
    libc::SYS_lchown,
    libc::SYS_link,
    libc::SYS_mkdir,
    libc::SYS_rename,
    libc::SYS_symlink,
];
#[cfg(not(target_arch = "x86_64"))]
const FOR_FILES_HERE: &[c_long] = &[];

/// x86-64 knows most calls by a second number.
#[cfg(target_arch = "x86_64")]
const SECOND_NUMBER: c_long = 0x4000_0000;
/// Calls that have a number of their own there.
#[cfg(target_arch = "x86_64")]
const OTHERWISE_NUMBERED: &[(c_long, c_long)] = &[
    (libc::SYS_execve, 520),
    (libc::SYS_ptrace, 521),
    (libc::SYS_rt_sigqueueinfo, 524),
    (libc::SYS_kexec_load, 528),
    (libc::SYS_rt_tgsigqueueinfo, 536),
    (libc::SYS_process_vm_writev, 540),
    (libc::SYS_execveat, 545),
];

/// The last of the `bpf` commands that read and write maps; 0 makes one, and what follows makes and attaches things.
const LAST_OF_MAPS: u64 = 4;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The filter of a process that has started and keeps what its role needs.
pub(super) fn program(role: Role) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules = Rules::new();
    let mut refuse = |calls: &[c_long]| {
        for call in calls {
            rules.insert(*call, Vec::new());
        }
    };
    refuse(NEVER);
    refuse(NEVER_HERE);
    if role != Role::Run {
        refuse(FOR_RUN);
        refuse(FOR_RUN_HERE);
    }
    if !matches!(role, Role::Helper { .. }) {
        refuse(FOR_HELPER);
    }
    if role != (Role::Helper { writes: true }) {
        refuse(FOR_FILES);
        refuse(FOR_FILES_HERE);
        rules.insert(libc::SYS_openat, opens_for_writing(2)?);
        #[cfg(target_arch = "x86_64")]
        rules.insert(libc::SYS_open, opens_for_writing(1)?);
    }
    rules.insert(
        libc::SYS_bpf,
        vec![
            rule(vec![argument(0, SeccompCmpOp::Gt, LAST_OF_MAPS)?])?,
            rule(vec![argument(0, SeccompCmpOp::Eq, 0)?])?,
        ],
    );
    // Nothing here talks to a network.
    let family =
        |family: libc::c_int| argument(0, SeccompCmpOp::Ne, u64::from(family.unsigned_abs()));
    let other_families = vec![family(libc::AF_UNIX)?, family(libc::AF_NETLINK)?];
    rules.insert(libc::SYS_socket, vec![rule(other_families)?]);
    #[cfg(target_arch = "x86_64")]
    add_second_numbers(&mut rules);
    let errno = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, errno, arch)?.try_into()
}

/// For a call whose flags are this argument.
fn opens_for_writing(flags: u8) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let bits = |mask: libc::c_int, value: libc::c_int| {
        let mask = SeccompCmpOp::MaskedEq(u64::from(mask.unsigned_abs()));
        rule(vec![argument(
            flags,
            mask,
            u64::from(value.unsigned_abs()),
        )?])
    };
    Ok(vec![
        bits(libc::O_ACCMODE, libc::O_WRONLY)?,
        bits(libc::O_ACCMODE, libc::O_RDWR)?,
        bits(libc::O_CREAT, libc::O_CREAT)?,
        bits(libc::O_TRUNC, libc::O_TRUNC)?,
    ])
}

fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(conditions)
}

fn argument(
    number: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(number, Dword, operator, value)
}

#[cfg(target_arch = "x86_64")]
fn add_second_numbers(rules: &mut Rules) {
    let second: Rules = rules
        .iter()
        .map(|(call, rule)| {
            let own = OTHERWISE_NUMBERED.iter().find(|(first, _)| first == call);
            let number = own.map_or(*call, |(_, number)| *number);
            (number | SECOND_NUMBER, rule.clone())
        })
        .collect();
    rules.extend(second);
}

#[cfg(test)]
mod tests {
    use std::{
        fs, io,
        net::TcpListener,
        os::unix::net::{UnixDatagram, UnixStream},
        thread,
    };

    use super::*;

    #[test]
    fn every_role_has_a_filter() {
        let roles = [
            Role::Watch,
            Role::Run,
            Role::Helper { writes: false },
            Role::Helper { writes: true },
        ];
        for role in roles {
            let program = program(role).unwrap();
            // The kernel takes no more.
            assert!(program.len() < 4096, "{role:?}: {}", program.len());
        }
    }

    /// A filter belongs to a thread, so each test has one of its own.
    fn filtered<T: Send + 'static>(role: Role, try_it: impl FnOnce() -> T + Send + 'static) -> T {
        let filter = program(role).unwrap();
        let thread = thread::spawn(move || {
            seccompiler::apply_filter(&filter).unwrap();
            try_it()
        });
        thread.join().unwrap()
    }

    fn is_refused<T>(result: io::Result<T>) -> bool {
        result.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
    }

    fn call(number: c_long, first: libc::c_int) -> io::Result<()> {
        // SAFETY: a plain number and no pointer: each of the calls that are tried fails without one.
        match unsafe { libc::syscall(number, first, 0, 0, 0, 0, 0) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    #[test]
    fn a_watch_reads_and_does_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "as it was").unwrap();
        let there = file.clone();
        filtered(Role::Watch, move || {
            assert_eq!(fs::read(&there).unwrap(), b"as it was");
            fs::File::open("/proc/self/mem").unwrap();
            UnixDatagram::pair().unwrap();
            thread::spawn(|| {}).join().unwrap();

            assert!(is_refused(fs::write(&there, "changed")));
            assert!(is_refused(fs::File::options().append(true).open(&there)));
            assert!(is_refused(fs::write(there.with_file_name("new"), "")));
            assert!(is_refused(fs::remove_file(&there)));
            assert!(is_refused(fs::rename(&there, there.with_extension("x"))));
            assert!(is_refused(fs::create_dir(there.with_extension("d"))));
            assert!(is_refused(call(libc::SYS_execve, 0)));
            assert!(is_refused(TcpListener::bind("127.0.0.1:0")));
            assert!(is_refused(UnixStream::connect(&there)));
            let own = std::process::id().cast_signed();
            assert!(is_refused(call(libc::SYS_kill, own)));
            for number in [
                libc::SYS_ptrace,
                libc::SYS_process_vm_writev,
                libc::SYS_perf_event_open,
                libc::SYS_io_uring_setup,
                libc::SYS_finit_module,
            ] {
                assert!(is_refused(call(number, -1)), "{number}");
            }
            // Tables may be looked into (there is none here), and nothing else: no new table, no program.
            for (command, refused) in [
                (1, false),
                (2, false),
                (4, false),
                (0, true),
                (5, true),
                (28, true),
            ] {
                let answer = call(libc::SYS_bpf, command);
                let said = answer.unwrap_err().raw_os_error();
                assert!(
                    !refused || said == Some(libc::EPERM),
                    "bpf {command}: {said:?}"
                );
                assert!(
                    refused || said != Some(libc::EPERM) || !is_root(),
                    "bpf {command}: {said:?}"
                );
            }
        });
        assert_eq!(fs::read(&file).unwrap(), b"as it was");
    }

    #[test]
    fn only_run_starts_and_ends_and_only_the_helper_may_write() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        let path = file.clone();
        filtered(Role::Run, move || {
            // There is no such address, which only a call that is made finds out.
            let said = call(libc::SYS_execve, 0).unwrap_err().raw_os_error();
            assert_eq!(said, Some(libc::EFAULT));
            call(libc::SYS_kill, std::process::id().cast_signed()).unwrap();
            assert!(is_refused(fs::write(path, "")));
        });
        let path = file.clone();
        filtered(Role::Helper { writes: false }, move || {
            assert!(is_refused(fs::write(path, "")));
        });
        let path = file.clone();
        filtered(Role::Helper { writes: true }, move || {
            fs::write(path, "written").unwrap();
            assert!(is_refused(call(libc::SYS_execve, 0)));
        });
        assert_eq!(fs::read(&file).unwrap(), b"written");
    }

    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }
}
