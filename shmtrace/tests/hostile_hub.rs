//! A hub whose owner is an enemy: it is cut, grown, scribbled on, hole-punched and replaced while it is watched.

mod support;

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FallocateFlags, fallocate},
    process::{Pid, Signal, kill_process},
};
use shmtrace::{
    discover::{Discovery, Hint},
    hub::{HubReader, check},
    observe::{Observer, mono_now},
};
use shmtrace_engine::{Direction, LaneId};
use support::Peers;

/// For how long the enemy works. A campaign of minutes: set `SHMTRACE_ATTACK_SECONDS`.
fn duration() -> Duration {
    let seconds = std::env::var("SHMTRACE_ATTACK_SECONDS")
        .ok()
        .and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(3))
}

/// A generator that needs no crate: the enemy only has to be unpredictable enough.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// One act against the file; `sound` is what it was.
fn attack(file: &File, path: &Path, sound: &[u8], dice: &mut Dice) {
    let control = sound.len() as u64;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let done = match dice.roll(9) {
        0 => file.set_len(dice.roll(2 * control)),
        1 => file.set_len(0),
        2 => fallocate(file, punch, dice.roll(control), 1 + dice.roll(control)).map_err(Into::into),
        // A word anywhere; half of them in the header or the peer table.
        3..=5 => {
            let below = if dice.roll(2) == 0 { 2304 } else { control - 8 };
            let value = match dice.roll(3) {
                0 => dice.roll(u64::MAX),
                1 => u64::MAX - dice.roll(64),
                _ => dice.roll(512),
            };
            file.write_all_at(&value.to_ne_bytes(), dice.roll(below) / 4 * 4)
        }
        6 => fs::rename(path, path.with_extension("away")).and_then(|()| match dice.roll(2) {
            0 => fs::write(path, b"RAPAHUB\0 and nothing else"),
            _ => rustix::fs::mknodat(
                rustix::fs::CWD,
                path,
                rustix::fs::FileType::Fifo,
                0o600.into(),
                0,
            )
            .map_err(Into::into),
        }),
        7 => fs::rename(path.with_extension("away"), path),
        _ => file
            .set_len(control)
            .and_then(|()| file.write_all_at(sound, 0)),
    };
    // What fails (a rename of what is not there) is no attack.
    drop(done);
}

/// Stopped processes that map a hub on a tmpfs, and its control part as it was.
fn victims() -> (Peers, PathBuf, Vec<u8>) {
    let path = PathBuf::from(format!(
        "/dev/shm/shmtrace-hostile-{}.shm",
        std::process::id()
    ));
    let hub = path.to_str().unwrap();
    let mut peers = Peers::start(
        "04",
        &[
            "--plugins",
            "3",
            "--round-trips",
            "0",
            "--gap",
            "1ms",
            "--hub",
            hub,
        ],
    );
    peers.wait_for("ready");
    for pid in peers.tree() {
        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::STOP).unwrap();
    }
    let reader = HubReader::open_path(&path).unwrap();
    let sound = reader
        .read_at(0, reader.geometry().control_bytes())
        .unwrap();
    (peers, path, sound)
}

/// Everything that a watch does with a hub.
fn look(discovery: &mut Discovery, observer: &mut Observer, live: &[u32]) {
    discovery.hint(Hint::Lost);
    discovery.refresh(mono_now(), live);
    discovery.infer(mono_now());
    discovery.samples(mono_now(), &mut Vec::new());
    let hubs: Vec<_> = discovery.hubs().map(shmtrace::discover::Hub::id).collect();
    let peers: Vec<_> = discovery
        .bindings()
        .map(|binding| (binding.hub, binding.peer))
        .collect();
    for (hub, peer) in peers.into_iter().take(2) {
        for direction in [Direction::ToPeer, Direction::ToHost] {
            let _any = observer.lane(
                discovery,
                LaneId {
                    hub,
                    peer,
                    direction,
                },
            );
        }
    }
    for hub in hubs {
        let _any = observer.hub(discovery, hub);
    }
}

#[test]
fn nothing_that_is_done_to_a_hub_harms_the_one_who_watches_it() {
    let (peers, path, sound) = victims();
    let live = peers.tree();
    let mut discovery = Discovery::new();
    let mut observer = Observer::new();
    discovery.refresh(mono_now(), &live);
    assert_eq!(discovery.hubs().count(), 1);

    let file = File::options().read(true).write(true).open(&path).unwrap();
    let over = AtomicBool::new(false);
    let mut longest = Duration::ZERO;
    let mut looks = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
            // Relaxed: nothing is handed over, the other thread only has to see it some time.
            while !over.load(Ordering::Relaxed) {
                attack(&file, &path, &sound, &mut dice);
            }
        });
        let end = Instant::now() + duration();
        while Instant::now() < end {
            let begun = Instant::now();
            look(&mut discovery, &mut observer, &live);
            if let Ok((reader, _)) = HubReader::open_damaged(&path) {
                let _any = check(&reader);
            }
            longest = longest.max(begun.elapsed());
            looks += 1;
        }
        over.store(true, Ordering::Relaxed);
    });
    println!("{looks} looks, the longest took {longest:?}");
    assert!(looks > 10, "{looks} looks: something kept it waiting");

    // When the file is whole again it is read again.
    let _back = fs::rename(path.with_extension("away"), &path);
    file.set_len(sound.len() as u64 + (110 << 20)).unwrap();
    file.write_all_at(&sound, 0).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !discovery.hubs().any(|hub| hub.reader().is_intact()) {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(50));
        look(&mut discovery, &mut observer, &live);
    }

    // And a file that has no page keeps none.
    let all = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, all, 0, file.metadata().unwrap().len()).unwrap();
    for _ in 0..20 {
        look(&mut discovery, &mut observer, &live);
    }
    assert_eq!(
        file.metadata().unwrap().blocks(),
        0,
        "pages were made in the victim's file"
    );

    for pid in live {
        let _gone = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL);
    }
    drop(peers);
    for left in [path.with_extension("away"), path] {
        let _gone = fs::remove_file(left);
    }
}
