//! Starting other programs: shown before they run, and an error that says which one failed.

use std::{
    io,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A command from words.
pub(crate) fn command<'a>(program: &str, args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// Runs it to its end, its output going where ours goes.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    eprintln!("$ {shown}");
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed: {status}");
    }
    Ok(())
}

/// Starts it and does not wait.
pub(crate) fn show_and_spawn(command: &mut Command) -> Result<Child> {
    let shown = show(command);
    eprintln!("$ {shown}");
    command
        .spawn()
        .with_context(|| format!("cannot start `{shown}`"))
}

/// What it prints, if it succeeds; its complaints are not shown.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether it succeeds; it prints nothing.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    output(command).is_some()
}

/// Asks a child that was not waited for yet to end.
pub(crate) fn terminate(child: &Child) -> Result<()> {
    signal(child, Signal::TERM)
}

/// What ^C would do.
pub(crate) fn interrupt(child: &Child) -> Result<()> {
    signal(child, Signal::INT)
}

/// Sends a signal to a child that was not waited for yet.
pub(crate) fn signal(child: &Child, signal: Signal) -> Result<()> {
    let pid = Pid::from_child(child);
    kill_process(pid, signal).with_context(|| format!("cannot signal process {}", child.id()))
}

/// `bpf(2)`: what the command returns.
///
/// # Safety
/// `attr` is what the command takes of `union bpf_attr`, up to a field's end; addresses in it are valid.
pub(crate) unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<i32> {
    // SAFETY: as for the caller; the kernel reads and writes as many bytes of `attr` as it is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

/// A child that does not outlive us.
pub(crate) struct Guard(pub(crate) Child);

impl Guard {
    /// Asks the child to end, and waits until it has.
    pub(crate) fn end(mut self) -> Result<()> {
        if self.0.try_wait()?.is_none() {
            terminate(&self.0)?;
        }
        self.0.wait().context("cannot wait for a child")?;
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // An error here means that it has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The command as one could type it.
pub(crate) fn show(command: &Command) -> String {
    let variables = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.display(), value?.display())));
    let words = [command.get_program()]
        .into_iter()
        .chain(command.get_args())
        .map(|word| {
            let word = word.to_string_lossy();
            if word.contains(char::is_whitespace) {
                format!("'{word}'")
            } else {
                word.into_owned()
            }
        });
    variables.chain(words).collect::<Vec<_>>().join(" ")
}
