//! Writing records.

use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_probe_read_user};
use shmtrace_common::{
    Counter, Doorbell, FLAG_TO_HOST, FLAG_TO_PEER, Kind, NO_PEER, Process, Record, SIDE_HOST,
    SIDE_PLUGIN,
};

use crate::{
    maps::{ABI_6, Tally},
    ring,
};

/// What a record says beyond time and place.
#[derive(Clone, Copy)]
pub struct Fact {
    /// pid and thread, as `bpf_get_current_pid_tgid` puts them: who knows them already need not ask again.
    pub thread: u64,
    pub kind: Kind,
    pub flags: u8,
    pub syscall: u16,
    pub result: i32,
    pub hub: u32,
    pub arg: u64,
    pub fd: i32,
}

/// A doorbell as the current process has it.
#[derive(Clone, Copy)]
pub struct At {
    pub doorbell: &'static Doorbell,
    /// Address of its hub in the process, 0 if that is not known.
    pub base: u64,
}

impl At {
    /// By what the process is known to map.
    #[inline(always)]
    pub fn mapped_by(process: &Process, doorbell: &'static Doorbell) -> Self {
        let end = doorbell.to_peer.max(doorbell.to_host) + (HEADER_WORDS * 8) as u64;
        let mut base = 0;
        for mapping in &process.hubs {
            if mapping.hub == doorbell.hub && end <= mapping.len {
                base = mapping.base;
            }
        }
        Self { doorbell, base }
    }
}

/// Writes a record of a call and counts it.
#[inline(always)]
pub fn call(tally: Tally, fact: &Fact, at: Option<At>) {
    let written = write(tally, fact, at);
    tally.count(if written {
        Counter::CallRecords
    } else {
        Counter::CallDrops
    });
}

/// Writes a record of something else and counts it.
#[inline(always)]
pub fn other(tally: Tally, fact: &Fact, at: Option<At>) {
    let written = write(tally, fact, at);
    tally.count(if written {
        Counter::OtherRecords
    } else {
        Counter::OtherDrops
    });
}

#[inline(always)]
fn write(tally: Tally, fact: &Fact, at: Option<At>) -> bool {
    let Some(At { doorbell, base }) = at else {
        return put(tally, fact, NO_PEER, 0, fact.hub, [0; 4]);
    };
    let wanted = wanted(fact.kind, doorbell);
    let (read, rings) = indexes(base, doorbell, wanted);
    if read != wanted {
        tally.count(Counter::RingFaults);
    }
    put(tally, fact, doorbell.peer, read, doorbell.hub, rings)
}

/// The rings that a record is about, as `FLAG_*` bits: each read costs as much as a third of the record. A signal and its
/// taking concern one lane, and a sleep the lane that the process consumes; a signal at a doorbell whose peer is not known
/// yet may be in either.
#[inline(always)]
fn wanted(kind: Kind, doorbell: &Doorbell) -> u8 {
    match (kind, doorbell.side) {
        _ if doorbell.peer == NO_PEER => FLAG_TO_PEER | FLAG_TO_HOST,
        (Kind::Ring, SIDE_HOST) | (Kind::Take | Kind::Sleep, SIDE_PLUGIN) => FLAG_TO_PEER,
        (Kind::Ring, SIDE_PLUGIN) | (Kind::Take | Kind::Sleep, SIDE_HOST) => FLAG_TO_HOST,
        _ => FLAG_TO_PEER | FLAG_TO_HOST,
    }
}

/// A ring's header up to the tail: head in the first word, tail in the last.
const HEADER_WORDS: usize = 9;

/// Head and tail of the wanted rings as the current process sees them, and which of them could be read.
#[inline(always)]
fn indexes(base: u64, doorbell: &Doorbell, wanted: u8) -> (u8, [u64; 4]) {
    let mut read = 0;
    let mut rings = [0; 4];
    if base == 0 {
        return (read, rings);
    }
    if wanted & FLAG_TO_PEER != 0
        && let Some(header) = header(base + doorbell.to_peer)
    {
        rings[0] = header[0];
        rings[1] = header[HEADER_WORDS - 1];
        read |= FLAG_TO_PEER;
    }
    if wanted & FLAG_TO_HOST != 0
        && let Some(header) = header(base + doorbell.to_host)
    {
        rings[2] = header[0];
        rings[3] = header[HEADER_WORDS - 1];
        read |= FLAG_TO_HOST;
    }
    (read, rings)
}

/// One read for both indexes of a ring: the call costs more than the bytes between them.
#[inline(always)]
fn header(address: u64) -> Option<[u64; HEADER_WORDS]> {
    // SAFETY: the helper checks the address; a page that is not there is an error.
    unsafe { bpf_probe_read_user(address as *const [u64; HEADER_WORDS]).ok() }
}

#[inline(always)]
fn put(tally: Tally, fact: &Fact, peer: u16, flags: u8, hub: u32, rings: [u64; 4]) -> bool {
    if ABI_6.load() == 0 {
        return false;
    }
    ring::put(tally.alone, |cpu| {
        // SAFETY: a helper without arguments.
        let at = unsafe { bpf_ktime_get_ns() };
        Record {
            at,
            pid: (fact.thread >> 32) as u32,
            tid: fact.thread as u32,
            kind: fact.kind as u8,
            flags: flags | fact.flags,
            cpu: cpu as u16,
            syscall: fact.syscall,
            peer,
            result: fact.result,
            hub,
            arg: fact.arg,
            fd: fact.fd,
            mark: 0,
            rings,
        }
    })
}
