//! The probes as the daemon sees them: loading, attaching, filling their tables, draining their rings.

mod event;
mod failed_sends;
mod left_out;
mod offsets;
mod rings;
mod tracefs;
mod wakeups;

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, Program, ProgramError},
};
use shmtrace_common::{
    ABI_GLOBAL, Counter, Counters, Doorbell, MAX_DOORBELLS, PID_SLOTS, Process, Record,
};
use thiserror::Error;

pub(crate) use event::{can_sample, open_event};
use failed_sends::FailedSends;
#[cfg(not(any(test, fuzzing)))]
use rings::Rings;
#[cfg(any(test, fuzzing))]
pub(crate) use rings::Rings;

pub use rings::Drained;
pub use wakeups::Wakeups;

use crate::{limits, rights};

/// The compiled probes; empty when the daemon was built without a BPF toolchain.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/shmtrace"));

/// Bytes for the records of all CPUs, unless told otherwise.
pub const DEFAULT_BUFFER_BYTES: usize = 8 << 20;
/// Records that each CPU has room for at least, however many CPUs there are: what one can write in 5 ms.
const LEAST_ROOM: usize = 4096;

/// Why tracing cannot start; each message says what to do.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// Built without probes.
    #[error(
        "this shmtrace was built without its eBPF probes: run `cargo xtask setup`, then build again with `cargo xtask build`"
    )]
    NotBuilt,
    /// Missing rights.
    #[error(
        "not permitted to load eBPF programs: {missing} missing; run shmtrace as root, with `sudo shmtrace ...`, or with \
         the capabilities that `shmtrace doctor` names"
    )]
    NotPermitted {
        /// Capabilities, in words.
        missing: String,
        /// What the kernel says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel lacks something.
    #[error("this kernel cannot run the probes: {what}; {remedy}")]
    Unsupported {
        /// What is missing.
        what: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// Anything else that the kernel or the loader says.
    #[error("cannot {what}")]
    Failed {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Where the sampling programs find things in this kernel.
pub(crate) fn profile_offsets() -> Result<shmtrace_common::profile::ProfileOffsets, ProbeError> {
    offsets::read_for_profile().map_err(|what| ProbeError::Unsupported {
        what,
        remedy: "a distribution kernel from 5.10 with CONFIG_DEBUG_INFO_BTF=y will do",
    })
}

/// Whether this program was built with a toolchain for the probes.
pub fn are_built_in() -> bool {
    !OBJECT.is_empty()
}

/// Loaded and attached probes. Dropping them detaches.
pub struct Probes {
    // Holds programs and links.
    ebpf: Ebpf,
    failed_sends: FailedSends,
    /// Sockets are not watched: see [`AT_CALLS`].
    at_calls: bool,
    preemptible: bool,
    processes: HashMap<MapData, u32, Process>,
    pids: Array<MapData, u32>,
    sockets: HashMap<MapData, u64, u32>,
    doorbells: Array<MapData, Doorbell>,
    epoch: Array<MapData, u32>,
    epochs: u32,
    counters: PerCpuArray<MapData, Counters>,
    rings: Rings,
    wakeups: Option<RingBuf<MapData>>,
    logger: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
}

impl Probes {
    /// Loads the probes and attaches them. Nothing is traced before a process is entered by [`Self::trace`].
    ///
    /// Sends on closed fds are seen if they are wanted, or if that costs nobody anything.
    pub fn attach(buffer_bytes: usize, failed_sends: bool) -> Result<Self, ProbeError> {
        if OBJECT.is_empty() {
            return Err(ProbeError::NotBuilt);
        }
        // One after the other: each holds all of the kernel's types.
        let offsets = offsets::read().map_err(|what| ProbeError::Unsupported {
            what,
            remedy: "a distribution kernel from 5.10 with CONFIG_DEBUG_INFO_BTF=y will do",
        })?;
        let btf = Btf::from_sys_fs()
            .map_err(|e| unsupported("no type information of the kernel (BTF)", &e))?;

        let mut loader = EbpfLoader::new();
        let (cpus, room) = buffers(buffer_bytes)?;
        let preemptible = is_preemptible();
        let preemptible_word = u32::from(preemptible);
        loader
            .btf(Some(&btf))
            .override_global(ABI_GLOBAL, &1_u32, true)
            .override_global("OFFSETS", &offsets, true)
            .override_global("ROOM", &room, true)
            .override_global("PREEMPTIBLE", &preemptible_word, true)
            .map_max_entries("CURSORS", cpus)
            .map_max_entries("RECORDS", cpus * room);
        let mut ebpf = loader
            .load(OBJECT)
            .map_err(|e| denied_or_failed("load the probes", e))?;
        let (failed_sends, at_calls) = attach_all(&mut ebpf, &btf, failed_sends, preemptible)?;
        drop(btf);
        return_freed_memory();
        Self::open_maps(ebpf, (cpus, room), failed_sends, at_calls, preemptible)
    }

    fn open_maps(
        mut ebpf: Ebpf,
        (cpus, room): (u32, u32),
        failed_sends: FailedSends,
        at_calls: bool,
        preemptible: bool,
    ) -> Result<Self, ProbeError> {
        let logger = aya_log::EbpfLogger::init(&mut ebpf)
            .inspect_err(|e| tracing::debug!("no log from the probes: {e}"))
            .ok();
        let cursors = array(&mut ebpf, "CURSORS")?;
        let records = array(&mut ebpf, "RECORDS")?;
        let rings = Rings::map(raw(&cursors), raw(&records), cpus, room)
            .map_err(|e| failed("map the buffers of records", e))?;
        Ok(Self {
            processes: take(&mut ebpf, "PROCESSES")?,
            pids: take(&mut ebpf, "PIDS")?,
            sockets: take(&mut ebpf, "SOCKETS")?,
            doorbells: take(&mut ebpf, "DOORBELLS")?,
            epoch: take(&mut ebpf, "EPOCH")?,
            epochs: 0,
            counters: take(&mut ebpf, "COUNTERS")?,
            rings,
            wakeups: Some(take(&mut ebpf, "WAKEUPS")?),
            logger,
            failed_sends,
            at_calls,
            preemptible,
            ebpf,
        })
    }

    /// Enters a process into the tree, or replaces what the probes know of it.
    pub fn trace(&mut self, pid: u32, process: &Process) -> Result<(), MapError> {
        self.pids.set(pid % PID_SLOTS, 1, 0)?;
        self.processes.insert(pid, process, 0)?;
        self.next_epoch()
    }

    /// What the probes know of a process.
    pub fn process(&self, pid: u32) -> Option<Process> {
        self.processes.get(&pid, 0).ok()
    }

    /// Pids that the probes trace now.
    pub fn traced(&self) -> Vec<u32> {
        self.processes.keys().filter_map(Result::ok).collect()
    }

    /// Stops tracing a process.
    pub fn forget(&mut self, pid: u32) {
        if let Err(e) = self.processes.remove(&pid) {
            tracing::trace!(pid, "already forgotten: {e}");
        }
    }

    /// Tells the probes what the socket with this inode is. `slot` is below [`MAX_DOORBELLS`] and the socket's own.
    pub fn describe_socket(
        &mut self,
        inode: u64,
        slot: u32,
        doorbell: &Doorbell,
    ) -> Result<(), MapError> {
        debug_assert!(slot < MAX_DOORBELLS);
        self.doorbells.set(slot, doorbell, 0)?;
        self.sockets.insert(inode, slot, 0)?;
        self.next_epoch()
    }

    /// Voids what the probes remember. After each change and not before it, so that nothing old is remembered as new.
    fn next_epoch(&mut self) -> Result<(), MapError> {
        self.epochs = self.epochs.wrapping_add(1);
        self.epoch.set(0, self.epochs, 0)
    }

    /// Takes a socket out of the tables.
    pub fn forget_socket(&mut self, inode: u64, slot: u32) {
        let forgotten = self
            .doorbells
            .set(slot, Doorbell::default(), 0)
            .and_then(|()| self.sockets.remove(&inode))
            .and_then(|()| self.next_epoch());
        if let Err(e) = forgotten {
            tracing::trace!(inode, "already forgotten: {e}");
        }
    }

    /// Sees sends on closed fds, or does without where that slows every system call down. Takes some milliseconds if it
    /// changes anything.
    pub fn watch_failed_sends(&mut self, watch: bool) {
        self.failed_sends.watch(&mut self.ebpf, watch);
    }

    /// Whether sends on closed fds may have left no record; `lately` says whether they were to be done without lately.
    pub fn may_miss_failed_sends(&self, lately: bool) -> bool {
        self.failed_sends.may_miss(lately)
    }

    /// Why sends on closed fds are not seen, if they are not.
    pub fn blind_to_failed_sends(&self) -> Option<&str> {
        self.failed_sends.blind()
    }

    /// Whether doorbells are seen by the calls of 64-bit programs only, and not at their sockets.
    pub fn see_calls_only(&self) -> bool {
        self.at_calls
    }

    /// Hands the records that are there now to `each`, in the order of their times, `most` at a time: as long as there are
    /// more, the next call goes on with those that were there at the first.
    pub fn drain(&mut self, most: usize, each: impl FnMut(&Record)) -> Drained {
        let drained = self.rings.drain(most, each);
        if let Some(logger) = &mut self.logger
            && !drained.more
        {
            logger.flush();
        }
        drained
    }

    /// Whether the kernel may leave out runs of programs.
    pub fn can_be_left_out(&self) -> bool {
        self.preemptible
    }

    /// Runs of programs that the kernel left out, since the start: as many records may be missing, less those that were
    /// [made up for](Counter::MadeUp). Reads a file for each program.
    pub fn left_out(&self) -> u64 {
        left_out::so_far(&self.ebpf)
    }

    /// Records that found no room, since the start; read without a system call.
    pub fn lost(&self) -> u64 {
        self.rings.lost()
    }

    /// What wakes a reader that [rests](Self::rest). Within a runtime, and once.
    pub fn wakeups(&mut self) -> io::Result<Wakeups> {
        let ring = self.wakeups.take();
        Wakeups::new(ring.ok_or_else(|| io::Error::other("somebody has them already"))?)
    }

    /// From now on the next record wakes the reader; false if there is one that was not drained.
    pub fn rest(&mut self) -> bool {
        self.rings.rest()
    }

    /// Records wake nobody any more: the reader comes by itself.
    pub fn wake_up(&mut self) {
        self.rings.wake_up();
    }

    /// The probes' counters, summed over all CPUs.
    pub fn counters(&self) -> Result<Totals, MapError> {
        let mut totals = Totals::default();
        for cpu in self.counters.get(&0, 0)?.iter() {
            for (total, value) in totals.0.iter_mut().zip(cpu.0) {
                *total += value;
            }
        }
        Ok(totals)
    }
}

/// Sums of the probes' counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals([u64; Counter::COUNT]);

impl Totals {
    /// One counter.
    pub fn of(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// Records that found no room.
    pub fn dropped(&self) -> u64 {
        self.of(Counter::CallDrops) + self.of(Counter::OtherDrops)
    }

    /// Records written.
    pub fn written(&self) -> u64 {
        self.of(Counter::CallRecords) + self.of(Counter::OtherRecords)
    }
}

/// Programs by name, with their tracepoints; where two stand for one, the first that loads is used.
const PROGRAMS: [(&str, &[&str]); 4] = [
    (
        "sched_process_fork",
        &["shmtrace_fork", "shmtrace_fork_old"],
    ),
    (
        "sched_process_exec",
        &["shmtrace_exec", "shmtrace_exec_old"],
    ),
    (
        "sched_process_exit",
        &["shmtrace_exit", "shmtrace_exit_old"],
    ),
    (
        "sched_switch",
        &["shmtrace_sched_switch", "shmtrace_sched_switch_old"],
    ),
];

/// Every system call of everybody, for kernels without [`AT_SOCKETS`].
const AT_CALLS: (&str, &[&str]) = ("sys_exit", &["shmtrace_sys_exit", "shmtrace_sys_exit_old"]);

/// Where signals pass through sockets (from 6.3) and mappings are made, with the programs there.
const AT_SOCKETS: [(&str, &str); 3] = [
    ("sock_send_length", "shmtrace_sent"),
    ("sock_recv_length", "shmtrace_received"),
    ("vm_unmapped_area", "shmtrace_mapping"),
];

/// Programs that do what those at the same tracepoints were left out of; for kernels on which these can be preempted.
const SPARES: [(&str, &str); 5] = [
    ("sched_process_fork", "shmtrace_fork_spare"),
    ("sched_process_exec", "shmtrace_exec_spare"),
    ("sched_process_exit", "shmtrace_exit_spare"),
    ("sock_send_length", "shmtrace_sent_spare"),
    ("sock_recv_length", "shmtrace_received_spare"),
];

/// Attaches fork, exec and exit first, so that no child of a process entered later can be missed.
fn attach_all(
    ebpf: &mut Ebpf,
    btf: &Btf,
    failed_sends: bool,
    preemptible: bool,
) -> Result<(FailedSends, bool), ProbeError> {
    for (tracepoint, variants) in PROGRAMS {
        attach_first(ebpf, btf, tracepoint, variants)?;
    }
    if let Err(e) = attach_at_sockets(ebpf, btf) {
        tracing::debug!("watching all system calls, since sockets cannot be watched: {e}");
        let (tracepoint, variants) = AT_CALLS;
        attach_first(ebpf, btf, tracepoint, variants)?;
        return Ok((FailedSends::ForFree, true));
    }
    if preemptible {
        // After those that they stand in for.
        for (tracepoint, name) in SPARES {
            attach_first(ebpf, btf, tracepoint, &[name])?;
        }
    }
    Ok((FailedSends::attach(ebpf, btf, failed_sends), false))
}

/// Attaches the first of these programs that this kernel takes.
fn attach_first(
    ebpf: &mut Ebpf,
    btf: &Btf,
    tracepoint: &str,
    variants: &[&str],
) -> Result<(), ProbeError> {
    let mut last = None;
    for name in variants {
        match attach_one(ebpf, btf, tracepoint, name) {
            Ok(()) => return Ok(()),
            Err(e) => {
                tracing::debug!(program = name, "not usable here: {e}");
                last = Some(e);
            }
        }
    }
    last.map_or(Ok(()), |e| {
        Err(denied_or_failed(
            &format!("attach to tracepoint {tracepoint}"),
            e,
        ))
    })
}

/// Attaches the programs that watch sockets, all or none.
fn attach_at_sockets(ebpf: &mut Ebpf, btf: &Btf) -> Result<(), ProgramError> {
    let attached = AT_SOCKETS
        .into_iter()
        .try_for_each(|(tracepoint, name)| attach_one(ebpf, btf, tracepoint, name));
    if attached.is_err() {
        for (_, name) in AT_SOCKETS {
            if let Some(Program::BtfTracePoint(program)) = ebpf.program_mut(name)
                && let Err(e) = program.unload()
            {
                tracing::trace!(program = name, "was not loaded: {e}");
            }
        }
    }
    attached
}

fn attach_one(
    ebpf: &mut Ebpf,
    btf: &Btf,
    tracepoint: &str,
    name: &str,
) -> Result<(), ProgramError> {
    let program: &mut BtfTracePoint = program(ebpf, name)?.try_into()?;
    program.load(tracepoint, btf)?;
    program.attach()?;
    Ok(())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, ProgramError> {
    ebpf.program_mut(name)
        .ok_or_else(|| ProgramError::InvalidName {
            name: name.to_owned(),
        })
}

/// The kernel's types took some 20 MiB, which the allocator would keep for a watch that needs a fraction of it.
fn return_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer and changes nothing that is in use.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Whether programs at tracepoints can be preempted: to be sure, on every kernel that is newer than those that were seen
/// not to let them be. What that needs costs little where they cannot.
fn is_preemptible() -> bool {
    limits::kernel_version() > Some((6, 18))
}

/// How many CPUs need a buffer, and how many records each of these has room for: a power of two.
///
/// A CPU that comes online later has none; what it would write is counted as lost.
fn buffers(bytes: usize) -> Result<(u32, u32), ProbeError> {
    let online =
        aya::util::online_cpus().map_err(|(what, e)| failed(&format!("read {what}"), e))?;
    let cpus = online.into_iter().max().unwrap_or(0) + 1;
    let fit = bytes / size_of::<Record>() / cpus as usize;
    let room = 1 << fit.max(LEAST_ROOM).ilog2();
    Ok((cpus, room))
}

/// Takes an array out of the object, to be mapped.
fn array(ebpf: &mut Ebpf, name: &str) -> Result<MapData, ProbeError> {
    match ebpf.take_map(name) {
        Some(Map::Array(data)) => Ok(data),
        _ => Err(missing_map(name)),
    }
}

fn raw(map: &MapData) -> RawFd {
    map.fd().as_fd().as_raw_fd()
}

fn missing_map(name: &str) -> ProbeError {
    ProbeError::Failed {
        what: format!("find map {name} in the probes"),
        source: "the probes are of another version: build shmtrace again".into(),
    }
}

/// Takes a map out of the object as the type it is used as.
pub(crate) fn take<T>(ebpf: &mut Ebpf, name: &str) -> Result<T, ProbeError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or_else(|| missing_map(name))?;
    T::try_from(map).map_err(|e| failed(&format!("open map {name}"), e))
}

pub(crate) fn failed(
    what: &str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> ProbeError {
    ProbeError::Failed {
        what: what.to_owned(),
        source: Box::new(source),
    }
}

pub(crate) fn unsupported(what: &str, source: &dyn std::error::Error) -> ProbeError {
    ProbeError::Unsupported {
        what: format!("{what}: {source}"),
        remedy: "a distribution kernel from 5.10 with CONFIG_DEBUG_INFO_BTF=y will do",
    }
}

/// EPERM and EACCES anywhere in the chain mean missing rights.
pub(crate) fn denied_or_failed(
    what: &str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> ProbeError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(e) = cause {
        if e.downcast_ref::<io::Error>()
            .is_some_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
        {
            // The verifier's refusal is EACCES too, but it does not depend on rights alone.
            let missing = rights::missing(rights::TO_ATTACH);
            if !missing.is_empty() {
                return ProbeError::NotPermitted {
                    missing: rights::in_words(missing),
                    source: Box::new(error),
                };
            }
        }
        cause = e.source();
    }
    failed(what, error)
}
