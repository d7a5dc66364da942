//! A process with a child, both asleep, the parent with diagnostics that answer, hang and panic.
//!
//! `cargo run -p shm-debug --example hung`, then `kill -USR1` the pid that it prints.

use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::Mutex;
use std::{env, process};

use rustix::event::epoll;

/// Held by the main thread for good, as a hung program would.
static HELD: Mutex<()> = Mutex::new(());

fn main() -> io::Result<()> {
    let name = env::args().nth(1).unwrap_or_else(|| "parent".to_owned());
    shm_debug::install_sigusr1_handler(&name)?;
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let _held = HELD.lock();
    let mut child = None;
    if name == "parent" {
        child = Some(start_child()?);
        shm_debug::register_diagnostic(|out| out.push_str("--- A Section ---\n"));
        shm_debug::register_diagnostic(|_| drop(HELD.lock()));
        shm_debug::register_diagnostic(|_| panic!("on purpose"));
    }
    let mut stdout = io::stdout();
    writeln!(stdout, "{name} {}", process::id())?;
    stdout.flush()?;
    sleep_in_epoll()?;
    drop(child);
    Ok(())
}

fn start_child() -> io::Result<Child> {
    let child = Command::new(env::current_exe()?).arg("child").spawn()?;
    shm_debug::register_child_pid(child.id())?;
    Ok(child)
}

/// Returns only if somebody disturbs the sleep, which is what must not happen.
#[inline(never)]
fn sleep_in_epoll() -> io::Result<()> {
    let epoll: OwnedFd = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut events = Vec::with_capacity(1);
    let woken = epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None);
    eprintln!("the sleep in epoll_wait was disturbed: {woken:?}");
    Ok(())
}
