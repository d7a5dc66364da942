//! Limits: each is reached by a real process, and said.

use std::{io::Write as _, path::Path, process::Command};

use aya::maps::{HashMap, Map};
use serde_json::Value;
use shm_transport::{Hub, HubConfig};
use shmtrace::{
    discover::MAX_HUBS,
    process::{MAX_FDS, MAX_THREADS},
    sock::MAX_NAMESPACES,
};
use shmtrace_common::{MAX_DOORBELLS, MAX_HUBS_PER_PROCESS, MAX_PROCESSES, Process};

use crate::{
    canary::table,
    support::{Target, run, shmtrace},
};

/// Maps so many hubs, has so many pairs of sockets, other open files, and threads, and sleeps.
const MAPPER: &str = r"
import mmap, os, resource, socket, sys, threading
folder = sys.argv[1]
hubs, pairs, files, threads, mappings = map(int, sys.argv[2:])
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
wanted = 2 * pairs + files + mappings + 64
resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), max(hard, wanted)))
maps = []
for name in sorted(os.listdir(folder))[:hubs]:
    with open(os.path.join(folder, name), 'r+b') as file:
        maps.append(mmap.mmap(file.fileno(), 0))
deep = os.open(folder, os.O_RDONLY)
for _ in range(15 if mappings else 0):
    try:
        os.mkdir('d' * 250, dir_fd=deep)
    except FileExistsError:
        pass
    deep = os.open('d' * 250, os.O_RDONLY, dir_fd=deep)
if mappings:
    file = os.open('f', os.O_RDWR | os.O_CREAT, 0o600, dir_fd=deep)
    os.truncate(file, mmap.PAGESIZE)
    maps.extend(mmap.mmap(file, mmap.PAGESIZE) for _ in range(mappings))
kept = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(pairs)]
fds = [os.dup(0) for _ in range(files)]
threading.stack_size(64 << 10)
for _ in range(threads):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
os.write(1, b'up\n')
threading.Event().wait()
";

fn make_hubs(folder: &Path, number: usize) {
    let config = HubConfig {
        max_peers: 1,
        ring_capacity: 8,
    };
    for number in 0..number {
        drop(Hub::create(folder.join(format!("{number:02}.shm")), config).unwrap());
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn what_is_more_than_is_looked_at_is_said() {
    let hubs = MAX_HUBS + 3;
    let cases = [
        ([1, 0, 0, 0, 0], ""),
        ([hubs, 0, 0, 0, 0], "more than 16 hubs: "),
        (
            [MAX_HUBS_PER_PROCESS + 1, 0, 0, 0, 0],
            "maps more than 4 hubs",
        ),
        // They cost time, and nothing is hidden.
        ([1, MAX_DOORBELLS as usize / 2 + 1, 0, 0, 0], ""),
        ([1, 0, MAX_FDS, 0, 0], "has more than 65536 open files"),
        ([1, 0, 0, MAX_THREADS, 0], "has more than 4096 threads"),
        ([1, 0, 0, 0, 6_000], "has more than 16 MiB of mappings"),
    ];
    let folder = tempfile::tempdir().unwrap();
    make_hubs(folder.path(), hubs);
    for (numbers, said) in cases {
        let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        if most.is_some_and(|most| most <= numbers[2] as u64 + 64) {
            eprintln!("SKIPPED: nobody can have {} open files here", numbers[2]);
            continue;
        }
        let mut mapper = Command::new("python3");
        mapper.args(["-c", MAPPER]).arg(folder.path());
        mapper.args(numbers.map(|number| number.to_string()));
        let mut mapper = Target::start(&mut mapper);
        assert_eq!(mapper.line(), "up");
        let tree = mapper.arg();
        let ran = run(&["--duration", "1s", "--format", "json", "--pid-tree", &tree]);
        let summary = ran.stdout.lines().last().unwrap();
        let summary: Value = serde_json::from_str(summary).unwrap();
        let limits = summary["limits"].as_array().unwrap();
        if said.is_empty() {
            assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
            assert_eq!(limits, &[""; 0], "{ran:?}");
            continue;
        }
        let times = |text: &str| text.matches(said).count();
        assert_eq!(times(&ran.stderr), 1, "{said}: {ran:?}");
        let limits: Vec<&str> = limits.iter().filter_map(Value::as_str).collect();
        assert!(
            limits.iter().any(|limit| limit.contains(said)),
            "{said}: {ran:?}"
        );
        // Nothing was found, but not all was seen.
        assert_eq!(ran.code, Some(4), "{said}: {ran:?}");
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn network_namespaces_that_are_not_asked_are_said() {
    let folder = tempfile::tempdir().unwrap();
    make_hubs(folder.path(), 1);
    let namespaces = MAX_NAMESPACES + 2;
    let script = format!(
        "for n in $(seq {namespaces}); do unshare --net python3 -c \"$0\" \"$1\" 1 0 0 0 0 & done; wait"
    );
    let mut mappers = Command::new("bash");
    mappers.args(["-c", &script, MAPPER]).arg(folder.path());
    let mut mappers = Target::start(&mut mappers);
    for _ in 0..namespaces {
        assert_eq!(mappers.line(), "up");
    }
    let ran = run(&["--duration", "1s", "--pid-tree", &mappers.arg()]);
    let said = "more than 32 network namespaces";
    assert_eq!(ran.stderr.matches(said).count(), 1, "{ran:?}");
    assert_eq!(ran.code, Some(4), "{ran:?}");
}

/// The table of processes is filled by the test: it takes as many processes as most machines have pids.
#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn processes_that_are_not_followed_are_said() {
    let mut tree = Command::new("bash");
    tree.args(["-c", "read go; while :; do sleep 0.1; done"]);
    let (tree, mut input) = Target::start_with_input(&mut tree);
    let mut watch = shmtrace(&["--no-canary", "--format", "json", "--pid-tree", &tree.arg()]);
    let mut watch = Target::start(&mut watch);
    watch.line();
    let processes = table(watch.pid(), "PROCESSES");
    let mut processes = HashMap::<_, u32, Process>::try_from(Map::HashMap(processes)).unwrap();
    // Pids that no process has.
    let first = 1 << 30;
    let full = (first..=first + MAX_PROCESSES)
        .any(|pid| processes.insert(pid, Process::default(), 0).is_err());
    assert!(full);
    input.write_all(b"go\n").unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1));
    let pid = rustix::process::Pid::from_raw(watch.pid().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let summary = watch.line();
    assert!(summary.contains("more than 16384 processes"), "{summary}");
    assert_eq!(watch.code(), Some(4), "{summary}");
}
