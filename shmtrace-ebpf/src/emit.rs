//! Writing records.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_probe_read_user,
    },
};
use shmtrace_common::{Counter, Doorbell, FLAG_RINGS, Kind, NO_PEER, Process, Record};

use crate::maps::{ABI_1, DOORBELLS, WAKE_AT, count, ring};

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
pub fn call(fact: &Fact, process: &Process, doorbell: Option<&Doorbell>) {
    if write(fact, process, doorbell) {
        count(Counter::CallRecords);
    } else {
        count(Counter::CallDrops);
    }
}

/// Writes a record of something else and counts it.
#[inline(always)]
pub fn other(fact: &Fact, process: &Process, doorbell: Option<&Doorbell>) {
    if write(fact, process, doorbell) {
        count(Counter::OtherRecords);
    } else {
        count(Counter::OtherDrops);
    }
}

/// Writes a record without a doorbell and counts it.
#[inline(always)]
pub fn plain(fact: &Fact) {
    let written = reserve_and_write(fact, NO_PEER, 0, fact.hub, [0; 4]);
    count(if written { Counter::OtherRecords } else { Counter::OtherDrops });
}

/// The doorbell that the process used last.
#[inline(always)]
pub fn last_doorbell(process: &Process) -> Option<&'static Doorbell> {
    DOORBELLS.get(process.last_doorbell.checked_sub(1)?)
}

#[inline(always)]
fn write(fact: &Fact, process: &Process, doorbell: Option<&Doorbell>) -> bool {
    let Some(doorbell) = doorbell else {
        return reserve_and_write(fact, NO_PEER, 0, fact.hub, [0; 4]);
    };
    match indexes(process, doorbell) {
        Some(rings) => reserve_and_write(fact, doorbell.peer, FLAG_RINGS, doorbell.hub, rings),
        None => {
            count(Counter::RingFaults);
            reserve_and_write(fact, doorbell.peer, 0, doorbell.hub, [0; 4])
        }
    }
}

/// Head and tail of both rings as the current process sees them.
#[inline(always)]
fn indexes(process: &Process, doorbell: &Doorbell) -> Option<[u64; 4]> {
    let mut base = 0;
    let mut len = 0;
    for mapping in &process.hubs {
        if mapping.hub == doorbell.hub {
            base = mapping.base;
            len = mapping.len;
        }
    }
    // The last of the four words lies 64 bytes into the ring that stands later in the file.
    let end = doorbell.to_peer.max(doorbell.to_host) + 72;
    if base == 0 || end > len {
        return None;
    }
    let to_peer = base + doorbell.to_peer;
    let to_host = base + doorbell.to_host;
    Some([word(to_peer)?, word(to_peer + 64)?, word(to_host)?, word(to_host + 64)?])
}

#[inline(always)]
fn word(address: u64) -> Option<u64> {
    // SAFETY: the helper checks the address; a page that is not there is an error.
    unsafe { bpf_probe_read_user(address as *const u64).ok() }
}

#[inline(always)]
fn reserve_and_write(fact: &Fact, peer: u16, flags: u8, hub: u32, rings: [u64; 4]) -> bool {
    if ABI_1.load() == 0 {
        return false;
    }
    // The time is taken before the reserve, so that records of one CPU lie in the order of their times.
    // SAFETY: helpers without arguments.
    let (at, thread, cpu) =
        unsafe { (bpf_ktime_get_ns(), bpf_get_current_pid_tgid(), bpf_get_smp_processor_id()) };
    let ring = ring(cpu);
    let Some(mut entry) = ring.reserve::<Record>(0) else { return false };
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
    // quarter of the buffer is used.
    let wake = ring.query(u64::from(BPF_RB_AVAIL_DATA)) >= WAKE_AT.load();
    entry.submit(u64::from(if wake { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP }));
    true
}
