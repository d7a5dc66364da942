//! Real processes asked by SIGUSR1 what they wait for.

use std::env;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Built by cargo beside the tests.
fn example() -> PathBuf {
    let mut path = env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.join("examples/hung")
}

/// The parent process; ended with the test, and its child with it.
struct Asked(Child);

impl Drop for Asked {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

fn lines(stderr: ChildStderr) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// All lines until one starts with `last`.
fn until(lines: &Receiver<String>, last: &str) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        match lines.recv_timeout(Duration::from_secs(20)) {
            Ok(line) => {
                let ends = line.starts_with(last);
                seen.push(line);
                if ends {
                    return seen;
                }
            }
            Err(error) => panic!("{error}: no line {last:?} after:\n{}", seen.join("\n")),
        }
    }
}

#[test]
fn a_hung_parent_and_its_child_tell_what_they_wait_for() {
    let mut parent = Asked(
        Command::new(example())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let errors = lines(parent.0.stderr.take().unwrap());
    // Both have said who they are, so both have their handlers.
    let said = BufReader::new(parent.0.stdout.take().unwrap());
    assert_eq!(said.lines().take(2).count(), 2);

    let pid = Pid::from_raw(i32::try_from(parent.0.id()).unwrap()).unwrap();
    kill_process(pid, Signal::USR1).unwrap();
    let first = until(&errors, "=== End SIGUSR1: child").join("\n");
    let order = [
        "=== SIGUSR1: parent",
        "threads:",
        "--- A Section ---",
        "=== End SIGUSR1: parent",
        "=== SIGUSR1: child",
    ];
    let places: Vec<_> = order.iter().map(|part| first.find(part)).collect();
    assert!(
        places.iter().all(Option::is_some) && places.is_sorted(),
        "{places:?} in:\n{first}"
    );
    assert_eq!(first.matches(" S in epoll_").count(), 2, "{first}");
    assert!(
        first.matches("sleep_in_epoll").count() >= 2,
        "the stack should name the function:\n{first}"
    );
    assert!(first.contains("diagnostic 1 did not answer"), "{first}");
    assert!(first.contains("diagnostic 2 panicked"), "{first}");

    kill_process(pid, Signal::USR1).unwrap();
    let second = until(&errors, "=== End SIGUSR1: child").join("\n");
    assert!(second.contains("diagnostic 1 has not returned"), "{second}");
    for text in [&first, &second] {
        assert!(!text.contains("disturbed"), "{text}");
    }
    assert!(parent.0.try_wait().unwrap().is_none(), "still asleep");
}
