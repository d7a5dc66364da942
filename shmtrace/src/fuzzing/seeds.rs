//! The fuzzers' seeds: each is replayed, and those that can be made from the layout are compared with what it makes.
//!
//! `SHMTRACE_WRITE_SEEDS=1 cargo test -p shmtrace --lib fuzzing` writes the latter anew.

use std::{fs, mem::offset_of, path::PathBuf};

use shmtrace_common::{FLAG_TO_HOST, FLAG_TO_PEER, Kind, NO_PEER, NO_SYSCALL, Record};
use shmtrace_engine::{Direction, PeerId};

use crate::{
    hub::fixture::{Fixture, descriptor_at},
    recording::Recording,
};

/// A name and what it calls.
type Target = (&'static str, fn(&[u8]));

fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/seeds")
        .join(target)
}

/// The seeds of a target, by name.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut seeds: Vec<_> = fs::read_dir(folder(target))
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            (path.file_name().unwrap().to_string_lossy().into(), bytes)
        })
        .collect();
    seeds.sort();
    seeds
}

/// Compares a seed with what makes it, or writes it.
fn check(target: &str, name: &str, bytes: &[u8]) {
    let path = folder(target).join(name);
    if std::env::var_os("SHMTRACE_WRITE_SEEDS").is_some() {
        fs::create_dir_all(folder(target)).unwrap();
        fs::write(&path, bytes).unwrap();
    }
    assert!(
        fs::read(&path).unwrap() == bytes,
        "{target}/{name} is not what makes it: run again with SHMTRACE_WRITE_SEEDS=1"
    );
}

#[test]
fn every_seed_is_survived() {
    let targets: [Target; 6] = [
        ("hub", super::hub),
        ("recording", super::recording),
        ("steps", super::steps),
        ("records", super::records),
        ("proc", super::proc),
        ("netlink", super::netlink),
    ];
    for (target, run) in targets {
        let seeds = seeds(target);
        assert!(!seeds.is_empty(), "{target} has no seeds");
        for (name, bytes) in seeds {
            println!("{target}/{name}");
            run(&bytes);
            // Cut anywhere, too, where that is quick.
            let step = (bytes.len() / 64).max(1);
            (0..bytes.len())
                .step_by(step)
                .for_each(|end| run(&bytes[..end]));
        }
    }
}

#[test]
fn hubs_with_entries_waiting_and_with_acts_against_them() {
    let mut fixture = Fixture::new();
    let whole = |acts: &[[u8; 7]], fixture: &Fixture| {
        let mut bytes = vec![acts.len() as u8];
        bytes.extend(acts.as_flattened());
        bytes.extend(&fixture.bytes);
        bytes
    };
    check("hub", "empty", &whole(&[], &fixture));
    fixture.set_ring(PeerId(1), Direction::ToPeer, 5, 2);
    fixture.set_ring(PeerId(2), Direction::ToHost, 9, 1);
    for index in 2..5 {
        let at = descriptor_at(PeerId(1), Direction::ToPeer, index);
        fixture.set(at, &[index as u8; 24]);
    }
    check("hub", "waiting", &whole(&[], &fixture));
    let acts = [
        [3, 64, 0, 1, 2, 3, 4],  // a word of the peer table
        [2, 0, 0, 255, 3, 0, 0], // the first page becomes a hole
        [0, 40, 0, 0, 0, 0, 0],  // cut within the header
        [1, 0, 0, 0, 0, 0, 0],   // grown again
    ];
    check("hub", "attacked", &whole(&acts, &fixture));
}

#[test]
fn records_of_every_kind() {
    let mut bytes = Vec::new();
    for kind in 1..=10_u8 {
        let mut record = Record {
            at: 1_000_000 * u64::from(kind),
            pid: 1 + u32::from(kind & 1),
            tid: 1 + u32::from(kind & 1),
            kind,
            flags: FLAG_TO_PEER | FLAG_TO_HOST,
            cpu: 0,
            syscall: 44,
            peer: 0,
            result: 1,
            hub: 1,
            arg: 8 + u64::from(kind & 1),
            fd: 5,
            mark: 0,
            rings: [4, 3, 2, 1],
        };
        if kind == Kind::Sleep as u8 {
            record.syscall = 232;
        }
        if kind == Kind::Exit as u8 {
            (record.syscall, record.peer) = (NO_SYSCALL, NO_PEER);
        }
        // CPU by turns, honest, and a reading after every second one.
        bytes.push(0x4 | kind & 1 | if kind & 1 == 1 { 0x10 } else { 0 });
        bytes.extend(record_bytes(&record));
    }
    check("records", "kinds", &bytes);
    let mut away = vec![0x10];
    away.extend([0xff; size_of::<Record>()]);
    bytes.extend(away);
    check("records", "runaway", &bytes);
}

/// As it lies in memory.
fn record_bytes(record: &Record) -> [u8; size_of::<Record>()] {
    let mut bytes = [0; size_of::<Record>()];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(offset_of!(Record, at), &record.at.to_ne_bytes());
    put(offset_of!(Record, pid), &record.pid.to_ne_bytes());
    put(offset_of!(Record, tid), &record.tid.to_ne_bytes());
    put(offset_of!(Record, kind), &[record.kind, record.flags]);
    put(offset_of!(Record, cpu), &record.cpu.to_ne_bytes());
    put(offset_of!(Record, syscall), &record.syscall.to_ne_bytes());
    put(offset_of!(Record, peer), &record.peer.to_ne_bytes());
    put(offset_of!(Record, result), &record.result.to_ne_bytes());
    put(offset_of!(Record, hub), &record.hub.to_ne_bytes());
    put(offset_of!(Record, arg), &record.arg.to_ne_bytes());
    put(offset_of!(Record, fd), &record.fd.to_ne_bytes());
    for (number, index) in record.rings.iter().enumerate() {
        put(offset_of!(Record, rings) + number * 8, &index.to_ne_bytes());
    }
    bytes
}

#[test]
fn every_file_of_proc() {
    let stat = "17 (a) S 1 (b) R 5 17 17 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4711 99 1\n";
    let status = "Name:\ta\\nb\\\\c\nState:\tS (sleeping)\nTgid:\t17\nNSpid:\t17\t3\nSigCgt:\t0000000180014a03\n";
    let maps = "5581a000-5581b000 r-xp 00000000 fe:01 12 /usr/bin/x\n\
        7f00a000-7f00c000 rw-s 00001000 00:1c 99                         /tmp/a hub.shm (deleted)\n\
        7f00d000-7f00e000 rw-s 00000000 00:01 5 /memfd:x (deleted)\n";
    let syscall = "232 0x3 0x7ff1 0x400 0xffffffffffffffff 0x0 0x8 0x7ffc 0x7f12\n";
    let epoll = "pos:\t0\nflags:\t02\nmnt_id:\t15\n\
        tfd:        5 events:     2019 data:     55d7  pos:0 ino:1f1b sdev:8\n";
    let cgroups = "30 25 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        32 25 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\n\
        4:memory:/a/b\n0::/u\noom_kill 3\n";
    let words =
        "dodeca-mod-css\0--hub-path=/tmp/dodeca-hub-1.shm\0--peer-id\x003\0--doorbell-fd=9\0";
    for (which, (name, text)) in [
        ("stat", stat),
        ("status", status),
        ("maps", maps),
        ("code", maps),
        ("syscall", syscall),
        ("fdinfo", epoll),
        ("cgroups", cgroups),
        ("cmdline", words),
        ("modules", maps),
    ]
    .into_iter()
    .enumerate()
    {
        let bytes = [&[which as u8], text.as_bytes()].concat();
        check("proc", name, &bytes);
    }
    // Three frame records, each pointing to the next.
    let base = 0x7000_0000_u64;
    let mut words = vec![0x1234_u64; 24];
    for (at, next, address) in [
        (2, base + 48, 0x1001),
        (6, base + 112, 0x1003),
        (14, 0, 0x1005),
    ] {
        (words[at], words[at + 1]) = (next, address);
    }
    words.insert(0, base);
    let words = words.iter().flat_map(|word| word.to_ne_bytes());
    check(
        "proc",
        "stack",
        &std::iter::once(9).chain(words).collect::<Vec<u8>>(),
    );
}

#[test]
fn netlink_answers() {
    let answer = crate::sock::example_answer(5);
    let with_sequence = |sequence: u32| [&sequence.to_ne_bytes()[..], &answer].concat();
    check("netlink", "socket", &with_sequence(5));
    check("netlink", "other", &with_sequence(6));
    let words = |words: [u32; 5]| words.map(u32::to_ne_bytes).as_flattened().to_vec();
    // NLMSG_ERROR with -ENOENT, and NLMSG_DONE.
    let error = words([20, 2, 5, 0, 2_u32.wrapping_neg()]);
    let done = words([20, 3, 5, 0, 0]);
    check(
        "netlink",
        "error",
        &[&5_u32.to_ne_bytes()[..], &error].concat(),
    );
    check(
        "netlink",
        "dump",
        &[&with_sequence(5)[..], &answer, &done].concat(),
    );
}

/// The recordings are real ones, cut: what is made from them is the same in the other coding.
#[test]
fn steps_of_every_recording() {
    for (name, bytes) in seeds("recording") {
        let Ok(mut recording) = Recording::open(&bytes[..]) else {
            continue;
        };
        let mut coded = Vec::new();
        while let Ok(Some(step)) = recording.next_step() {
            coded.extend(postcard::to_stdvec(&step).unwrap());
        }
        check("steps", &name, &coded);
    }
}
