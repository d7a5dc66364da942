//! Files that block whoever opens them: a FUSE server that answers until a process has mapped a hub of it, and then no more.

use std::{
    ffi::OsStr,
    fs::File,
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    time::{Duration, SystemTime},
};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, Request,
};
use rustix::mount::{UnmountFlags, unmount};
use shm_transport::{Hub, HubConfig};

use crate::support::{Host, Kind, Target, eventually, shmtrace};

/// Attributes are asked for anew each time.
const NO_TIME: Duration = Duration::ZERO;
const HUB: INodeNo = INodeNo(2);

/// What the server and the test know together.
#[derive(Default)]
struct State {
    silent: bool,
    over: bool,
    /// Requests that came while it was silent, and wait.
    unanswered: Vec<&'static str>,
}

#[derive(Clone, Default)]
struct Silence(Arc<(Mutex<State>, Condvar)>);

impl Silence {
    fn begin(&self) {
        self.0.0.lock().unwrap().silent = true;
    }

    fn end(&self) {
        self.0.0.lock().unwrap().over = true;
        self.0.1.notify_all();
    }

    fn unanswered(&self) -> Vec<&'static str> {
        self.0.0.lock().unwrap().unanswered.clone()
    }

    /// Called for each request: comes back when the server answers.
    fn request(&self, what: &'static str) {
        let mut state = self.0.0.lock().unwrap();
        if state.silent && !state.over {
            state.unanswered.push(what);
        }
        let silent = |state: &mut State| state.silent && !state.over;
        drop(self.0.1.wait_while(state, silent).unwrap());
    }
}

/// Serves one hub.
struct Server {
    hub: File,
    silence: Silence,
}

impl Server {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let is_hub = inode == HUB;
        FileAttr {
            ino: inode,
            size: if is_hub {
                self.hub.metadata().unwrap().len()
            } else {
                0
            },
            blocks: 0,
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind: if is_hub {
                FileType::RegularFile
            } else {
                FileType::Directory
            },
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        self.silence.request("lookup");
        reply.entry(&NO_TIME, &self.attributes(HUB), Generation(0));
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.silence.request("getattr");
        reply.attr(&NO_TIME, &self.attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: fuser::ReplyOpen) {
        self.silence.request("open");
        reply.opened(FileHandle(0), fuser::FopenFlags::empty());
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.silence.request("read");
        let mut buffer = vec![0; size as usize];
        match self.hub.read_at(&mut buffer, offset) {
            Ok(read) => reply.data(&buffer[..read]),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: fuser::ReplyStatfs) {
        self.silence.request("statfs");
        reply.error(Errno::ENOSYS);
    }
}

/// Maps the hub, keeps a thread waiting for a page of it, and sleeps.
const MAPPER: &str = r"
import mmap, os, sys, threading
fd = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(fd, 0)
assert memory[:7] == b'RAPAHUB'
print('up', flush=True)
sys.stdin.readline()
threading.Thread(target=lambda: memory[len(memory) - 1], daemon=True).start()
threading.Event().wait()
";

struct Mounted {
    silence: Silence,
    folder: tempfile::TempDir,
    // Goes before the folder, and after the silence.
    session: Option<BackgroundSession>,
}

impl Mounted {
    fn new(hub: &Path) -> Self {
        let silence = Silence::default();
        let folder = tempfile::tempdir().unwrap();
        let server = Server {
            hub: File::open(hub).unwrap(),
            silence: silence.clone(),
        };
        let session = fuser::spawn_mount(server, folder.path(), &Config::default()).unwrap();
        Self {
            silence,
            folder,
            session: Some(session),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.silence.end();
        let _unmounted_already = unmount(self.folder.path(), UnmountFlags::DETACH);
        drop(self.session.take());
    }
}

#[test]
#[ignore = "privileged: run by cargo xtask test"]
fn a_hub_on_a_server_that_does_not_answer_is_not_touched() {
    if !Path::new("/dev/fuse").exists() {
        eprintln!("SKIPPED: there is no /dev/fuse here, so no file can be made that blocks");
        return;
    }
    let hubs = tempfile::tempdir().unwrap();
    let real = hubs.path().join("hub.shm");
    let config = HubConfig {
        max_peers: 2,
        ring_capacity: 8,
    };
    let kept = Hub::create(&real, config).unwrap();
    // With its mount, and without it: then nothing says any more of what kind it was.
    for detached in [false, true] {
        let mounted = Mounted::new(&real);
        let mut mapper = Command::new("python3");
        mapper.args(["-c", MAPPER]);
        mapper.arg(mounted.folder.path().join("hub.shm"));
        let (mut mapper, mut input) = Target::start_with_input(&mut mapper);
        assert_eq!(mapper.line(), "up");
        mounted.silence.begin();
        std::io::Write::write_all(&mut input, b"go\n").unwrap();
        // The process itself waits for the server now.
        assert!(eventually(|| mounted.silence.unanswered() == ["read"]));
        if detached {
            unmount(mounted.folder.path(), UnmountFlags::DETACH).unwrap();
        }
        let host = Host::healthy(Kind::Sim);
        let pids = format!("{},{}", mapper.arg(), host.arg());
        let watch = ["--duration", "2s", "--format", "json", "--events"];
        for (command, code) in [
            (&watch[..], Some(0)),
            (&["dump"], Some(0)),
            (&["inspect"], Some(0)),
        ] {
            let mut command = shmtrace(command);
            command.args(["--pid-tree", &pids]);
            let mut child = command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            // Both pipes are read while it runs, or it would wait for this test.
            let (out, err) = (child.stdout.take(), child.stderr.take());
            let out = std::thread::spawn(move || std::io::read_to_string(out.unwrap()).unwrap());
            let err = std::thread::spawn(move || std::io::read_to_string(err.unwrap()).unwrap());
            let ended = eventually(|| child.try_wait().unwrap().is_some());
            if !ended {
                child.kill().unwrap();
            }
            let status = child.wait().unwrap();
            let (out, err) = (out.join().unwrap(), err.join().unwrap());
            assert!(ended, "{command:?} hangs: {err}");
            assert_eq!(
                mounted.silence.unanswered(),
                ["read"],
                "{command:?} asked the server"
            );
            assert_eq!(status.code(), code, "{command:?}: {err}");
            assert!(err.contains("is not opened, since that may block"), "{err}");
            if command.get_args().any(|argument| argument == "--events") {
                let rings = out
                    .lines()
                    .filter(|line| line.contains(r#""event":"ring""#));
                assert!(rings.count() > 100, "{out}");
            }
        }
        // It ends once its page is there.
        mounted.silence.end();
    }
    drop(kept);
}
