//! The process between `fork` and `exec`.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    process::{Child, Command},
    thread::JoinHandle,
};

use rustix::pipe::{PipeFlags, pipe_with};

use super::{Account, LaunchError, SignalMask};

/// A held process.
pub(super) struct Spawned {
    pub(super) pid: u32,
    /// Write a byte to let it go; close it to end it.
    pub(super) gate: OwnedFd,
    /// Ends when `exec` has worked or failed.
    pub(super) spawner: JoinHandle<io::Result<Child>>,
}

/// Forks and holds the child before `exec`.
///
/// `Command::spawn` returns when `exec` has worked or failed, so it waits in a thread of its own.
pub(super) fn hold(
    words: Vec<OsString>,
    account: Option<Account>,
    mask: Option<SignalMask>,
) -> Result<Spawned, LaunchError> {
    let pipes = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| LaunchError::Fork(e.into()));
    let (pid_in, pid_out) = pipes()?;
    let (gate_in, gate_out) = pipes()?;
    let mut words = words.into_iter();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    if let Some(account) = &account {
        account.environment(&mut command);
    }
    let own_gate = gate_out.as_raw_fd();
    let in_child = move || {
        announce(&pid_out)?;
        if let Some(SignalMask(mask)) = &mask {
            // SAFETY: a set that the caller filled in; the old one is not asked for.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
        }
        if let Some(account) = &account {
            account.become_it()?;
        }
        wait_at(&gate_in, own_gate)
    };
    // SAFETY: the closure runs in the forked child. It makes system calls only (write, sigprocmask, setgroups, setresgid,
    // setresuid, close, read) on data that was made before the fork: no allocation, no lock.
    unsafe { command.pre_exec(in_child) };
    // `command` owns the child's ends of both pipes through the closure; it is dropped with the thread.
    let spawner = std::thread::Builder::new()
        .name("launch".to_owned())
        .spawn(move || command.spawn())
        .map_err(LaunchError::Fork)?;
    let mut pid = [0; 4];
    if let Ok(true) = read_all(&pid_in, &mut pid) {
        return Ok(Spawned {
            pid: u32::from_ne_bytes(pid),
            gate: gate_out,
            spawner,
        });
    }
    let failed = spawner.join().map_or_else(
        |_| io::Error::other("the thread that forks died"),
        |spawned| spawned.err().unwrap_or_else(|| io::ErrorKind::Other.into()),
    );
    Err(LaunchError::Fork(failed))
}

fn announce(pid_out: &OwnedFd) -> io::Result<()> {
    rustix::io::write(pid_out, &std::process::id().to_ne_bytes())?;
    Ok(())
}

/// Waits for a byte; the end of the pipe instead of it means that nobody will come.
fn wait_at(gate: &OwnedFd, own_end: RawFd) -> io::Result<()> {
    // SAFETY: in the child this fd is a copy that nothing else uses; were it open, the pipe would never end.
    unsafe { libc::close(own_end) };
    let mut byte = [0];
    if read_all(gate, &mut byte)? {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ECANCELED))
    }
}

/// Fills the buffer; false if the pipe ends before.
fn read_all(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::read(fd, &mut buffer[filled..]) {
            Ok(0) => return Ok(false),
            Ok(read) => filled += read,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}
