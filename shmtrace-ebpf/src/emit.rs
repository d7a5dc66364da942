//! Writing records.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_probe_read_user,
    },
};
use shmtrace_common::{
    Counter, Doorbell, FLAG_TO_HOST, FLAG_TO_PEER, Kind, NO_PEER, Process, Record, SIDE_HOST,
    SIDE_PLUGIN,
};

use crate::maps::{ABI_2, DOORBELLS, Tally, WAKE_AT, ring};

/// What a record says beyond time, place and thread.
#[derive(Clone, Copy)]
pub struct Fact {
    pub kind: Kind,
    pub flags: u8,
    pub syscall: u16,
    pub result: i32,
    pub hub: u32,
    pub arg: u64,
    pub fd: i32,
}

/// Writes a record of a call and counts it.
#[inline(always)]
pub fn call(tally: Tally, fact: &Fact, process: &Process, doorbell: Option<&Doorbell>) {
    let written = write(tally, fact, process, doorbell);
    tally.count(if written {
        Counter::CallRecords
    } else {
        Counter::CallDrops
    });
}

/// Writes a record of something else and counts it.
#[inline(always)]
pub fn other(tally: Tally, fact: &Fact, process: &Process, doorbell: Option<&Doorbell>) {
    let written = write(tally, fact, process, doorbell);
    tally.count(if written {
        Counter::OtherRecords
    } else {
        Counter::OtherDrops
    });
}

/// Writes a record without a doorbell and counts it.
#[inline(always)]
pub fn plain(tally: Tally, fact: &Fact) {
    let written = reserve_and_write(fact, NO_PEER, 0, fact.hub, [0; 4]);
    tally.count(if written {
        Counter::OtherRecords
    } else {
        Counter::OtherDrops
    });
}

/// The doorbell that the process used last.
#[inline(always)]
pub fn last_doorbell(process: &Process) -> Option<&'static Doorbell> {
    DOORBELLS.get(process.last_doorbell.checked_sub(1)?)
}

#[inline(always)]
fn write(tally: Tally, fact: &Fact, process: &Process, doorbell: Option<&Doorbell>) -> bool {
    let Some(doorbell) = doorbell else {
        return reserve_and_write(fact, NO_PEER, 0, fact.hub, [0; 4]);
    };
    let wanted = wanted(fact.kind, doorbell);
    let (read, rings) = indexes(process, doorbell, wanted);
    if read != wanted {
        tally.count(Counter::RingFaults);
    }
    reserve_and_write(fact, doorbell.peer, read, doorbell.hub, rings)
}

/// The rings that a record is about, as `FLAG_*` bits. A signal and its taking concern one lane, and each read costs as
/// much as a third of the record; a sleep may be in either lane's story, and so may a signal at a doorbell whose peer is
/// not known yet.
#[inline(always)]
fn wanted(kind: Kind, doorbell: &Doorbell) -> u8 {
    match (kind, doorbell.side) {
        _ if doorbell.peer == NO_PEER => FLAG_TO_PEER | FLAG_TO_HOST,
        (Kind::Ring, SIDE_HOST) | (Kind::Take, SIDE_PLUGIN) => FLAG_TO_PEER,
        (Kind::Ring, SIDE_PLUGIN) | (Kind::Take, SIDE_HOST) => FLAG_TO_HOST,
        _ => FLAG_TO_PEER | FLAG_TO_HOST,
    }
}

/// A ring's header up to the tail: head in the first word, tail in the last.
const HEADER_WORDS: usize = 9;

/// Head and tail of the wanted rings as the current process sees them, and which of them could be read.
#[inline(always)]
fn indexes(process: &Process, doorbell: &Doorbell, wanted: u8) -> (u8, [u64; 4]) {
    let mut read = 0;
    let mut rings = [0; 4];
    let mut base = 0;
    let mut len = 0;
    for mapping in &process.hubs {
        if mapping.hub == doorbell.hub {
            base = mapping.base;
            len = mapping.len;
        }
    }
    let end = doorbell.to_peer.max(doorbell.to_host) + (HEADER_WORDS * 8) as u64;
    if base == 0 || end > len {
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
fn reserve_and_write(fact: &Fact, peer: u16, flags: u8, hub: u32, rings: [u64; 4]) -> bool {
    if ABI_2.load() == 0 {
        return false;
    }
    // The time is taken before the reserve, so that records of one CPU lie in the order of their times.
    // SAFETY: helpers without arguments.
    let (at, thread, cpu) = unsafe {
        (
            bpf_ktime_get_ns(),
            bpf_get_current_pid_tgid(),
            bpf_get_smp_processor_id(),
        )
    };
    let ring = ring(cpu);
    let Some(mut entry) = ring.reserve::<Record>(0) else {
        return false;
    };
    entry.write(Record {
        at,
        pid: (thread >> 32) as u32,
        tid: thread as u32,
        kind: fact.kind as u8,
        flags: flags | fact.flags,
        cpu: cpu as u16,
        syscall: fact.syscall,
        peer,
        result: fact.result,
        hub,
        arg: fact.arg,
        fd: fact.fd,
        pad: 0,
        rings,
    });
    // A wakeup for each record costs more than all the rest: the reader polls, and is woken early only when a
    // quarter of the buffer is used, which one record in eight checks (the time's low bits are as good as random).
    let wake = at % 8 == 0 && ring.query(u64::from(BPF_RB_AVAIL_DATA)) >= WAKE_AT.load();
    entry.submit(u64::from(if wake {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    }));
    true
}
