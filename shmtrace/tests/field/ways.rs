//! Doorbells rung by other calls than the transport's: seen where signals are seen at their sockets, and never a wrong claim.

use std::{io::Write as _, process::Command};

use serde_json::Value;
use shmtrace::process::Process;

use super::{SECONDS, Stranger, Watch, alone, findings};

const CALLS: usize = 200;

/// Events of this kind that a process did.
fn count(lines: &[Value], event: &str, pid: u32) -> usize {
    let wanted = |line: &&Value| line["event"] == event && line["pid"] == pid;
    lines.iter().filter(wanted).count()
}

/// Whether signals are seen whichever call they come by; else the header must say so.
fn all_are_seen(lines: &[Value]) -> bool {
    let limits = lines[0]["limits"].to_string();
    let named = limits.contains("io_uring or by 32-bit programs leave no record");
    let kernel = lines[0]["kernel"].as_str().unwrap();
    let version = shmtrace::limits::version_of(kernel).unwrap();
    assert!(named || version >= (6, 3), "{limits}");
    !named
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_doorbell_may_be_rung_by_any_call() {
    let _alone = alone();
    for send in ["send", "write", "sendmsg", "sendmmsg", "io_uring"] {
        let folder = tempfile::tempdir().unwrap();
        let arguments = format!("--plugins 1 --calls {CALLS} --send {send}");
        let mut stranger = Stranger::start(&arguments, folder.path());
        let mut watch = Watch::start(stranger.pid(), &["--events"]);
        let hidden = Process::open(stranger.pid()).unwrap().hidden_calls();
        stranger.go();
        stranger.wait_for("done");
        let (_, lines) = watch.end();
        let mut findings = findings(&lines);
        // On a machine that has much to do the host may take long to notice the plugin's end, and to end.
        findings.retain(|finding| finding["code"] != "peer-died");
        assert_eq!(findings, Vec::<&Value>::new(), "{send}");
        if send == "io_uring" {
            assert_eq!(hidden, ["uses io_uring"]);
        } else {
            assert_eq!(hidden, [""; 0], "{send}");
        }
        if send != "io_uring" || all_are_seen(&lines) {
            // One more tells the plugin to end.
            let rings = count(&lines, "ring", stranger.pid());
            assert_eq!(rings, CALLS + 1, "{send}");
        }
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_wakeup_that_is_lost_after_any_call_is_found() {
    let _alone = alone();
    for send in ["write", "sendmmsg", "io_uring"] {
        for fault in ["consumed-then-slept", "never-rung"] {
            let folder = tempfile::tempdir().unwrap();
            let arguments = format!("--plugins 1 --send {send} --fault {fault}");
            let mut stranger = Stranger::start(&arguments, folder.path());
            let mut watch = Watch::start(stranger.pid(), &[]);
            stranger.go();
            stranger.wait_for("fault");
            let finding = watch.finding(SECONDS, "missed");
            assert_eq!(finding["code"], "missed-wakeup", "{send}: {finding:#}");
            let (_, lines) = watch.stop();
            let seen = send != "io_uring" || all_are_seen(&lines);
            let cause = if seen { fault } else { "unknown" };
            assert_eq!(finding["cause"], cause, "{send}: {finding:#}");
        }
    }
}

/// Without a libc: maps the hub (fd 10), waits for a byte, and rings the doorbell (fd 11) a hundred times.
#[cfg(target_arch = "x86_64")]
const NARROW: &str = r#"
static long call(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "0"(number), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}

void _start(void)
{
    char byte = 1;
    long map[6] = {0, 1 << 20, 3, 1, 10, 0};
    long send[4] = {11, (long)&byte, 1, 0x40};
    long pause[2] = {0, 2000000};
    long mapped = call(90, (long)map, 0, 0);
    if (mapped < 0 && mapped > -4096)
        call(1, 1, 0, 0);
    call(4, 1, (long)"up\n", 3);
    call(3, 0, (long)&byte, 1);
    for (int i = 0; i < 100; i++) {
        call(102, 9, (long)send, 0);
        call(162, (long)pause, 0, 0);
    }
    call(29, 0, 0, 0);
}
"#;

/// A host that starts it as its plugin, and takes what it sends.
#[cfg(target_arch = "x86_64")]
const STARTER: &str = r"
import os, subprocess, sys
folder, program, path = sys.argv[1:]
sys.path.insert(0, folder)
import hubfile
from doorbell import pair
places = hubfile.Places(32, 256, False)
hub = os.open(path, os.O_RDWR | os.O_CREAT)
hubfile.create(hub, places)
memory = hubfile.Memory(hub, places)
ours, theirs = pair(blocking=True)
os.dup2(hub, 10)
os.dup2(theirs, 11)
os.close(theirs)
words = [program, '--hub-path=' + path, '--peer-id=0', '--doorbell-fd=11']
plugin = subprocess.Popen(words, stdin=sys.stdin, pass_fds=(10, 11))
os.close(11)
memory.store(places.entry(0) + 4, hubfile.ACTIVE, 32)
os.write(1, b'%d\n' % plugin.pid)
for _ in range(100):
    os.read(ours, 1)
os.write(1, b'done\n')
plugin.kill()
";

#[test]
#[cfg(target_arch = "x86_64")]
#[ignore = "privileged: run by cargo xtask test"]
fn a_32_bit_program_is_recognized_and_its_signals_are_seen() {
    use std::io::{BufRead as _, BufReader, Read as _};
    use std::process::Stdio;

    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("dodeca-mod-narrow");
    let mut compiler = Command::new("cc");
    compiler.args(["-m32", "-O1", "-static", "-nostdlib", "-ffreestanding"]);
    compiler.args([
        "-fno-pic",
        "-no-pie",
        "-fno-stack-protector",
        "-x",
        "c",
        "-",
    ]);
    compiler.arg("-o").arg(&program).stdin(Stdio::piped());
    let mut compiler = compiler.spawn().unwrap();
    let mut source = compiler.stdin.take().unwrap();
    source.write_all(NARROW.as_bytes()).unwrap();
    drop(source);
    assert!(compiler.wait().unwrap().success());

    let strangers = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/field");
    let mut starter = Command::new("python3");
    starter.args(["-c", STARTER, strangers]).arg(&program);
    starter.arg(folder.path().join("hub"));
    let mut starter = starter
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(starter.stdout.take().unwrap());
    let (mut first, mut second) = (String::new(), String::new());
    said.read_line(&mut first).unwrap();
    if first.is_empty() {
        let mut error = String::new();
        starter
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut error)
            .unwrap();
        starter.wait().unwrap();
        assert!(error.contains("Exec format error"), "{error}");
        eprintln!("SKIPPED: this kernel runs no 32-bit programs");
        return;
    }
    said.read_line(&mut second).unwrap();
    // The two print at the same time.
    let plugin = [&first, &second]
        .iter()
        .find_map(|line| line.trim().parse().ok());
    let plugin: u32 = plugin.unwrap();
    let hidden = Process::open(plugin).unwrap().hidden_calls();
    assert_eq!(hidden, ["is a 32-bit program"]);
    let host = Process::open(starter.id()).unwrap().hidden_calls();
    assert_eq!(host, [""; 0]);

    let watch = Watch::start(starter.id(), &["--events"]);
    starter.stdin.take().unwrap().write_all(b"g").unwrap();
    let mut done = String::new();
    said.read_line(&mut done).unwrap();
    assert_eq!(done, "done\n");
    let (_, lines) = watch.stop();
    starter.wait().unwrap();
    if all_are_seen(&lines) {
        assert_eq!(count(&lines, "ring", plugin), 100, "{:#?}", lines.last());
    }
}
