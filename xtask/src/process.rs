//! Starting other programs: shown before they run, and an error that says which one failed.

use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};

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

/// A child that does not outlive us.
pub(crate) struct Guard(pub(crate) Child);

impl Guard {
    /// Asks the child to end, and waits until it has.
    pub(crate) fn end(mut self) -> Result<()> {
        if self.0.try_wait()?.is_none() {
            let pid = rustix::process::Pid::from_child(&self.0);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)
                .with_context(|| format!("cannot end process {pid:?}"))?;
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
fn show(command: &Command) -> String {
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
