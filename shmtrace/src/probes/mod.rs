//! The probes as the daemon sees them: loading, attaching, filling their tables, draining their rings.

mod offsets;
mod tracefs;

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, Program, ProgramError, TracePoint},
};
use rustix::event::epoll;
use shmtrace_common::{
    ABI_GLOBAL, Counter, Counters, Doorbell, MAX_DOORBELLS, MAX_RINGS, Process, Record,
};
use thiserror::Error;

use tracefs::Tracefs;

/// The compiled probes; empty when the daemon was built without a BPF toolchain.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/shmtrace"));

/// Bytes of each ring buffer unless told otherwise: with eight CPUs, 8 MiB in all.
pub const DEFAULT_RING_BYTES: u32 = 1 << 20;

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
        "not permitted to load eBPF programs ({0}): run shmtrace as root, with `sudo shmtrace ...`"
    )]
    NotPermitted(#[source] Box<dyn std::error::Error + Send + Sync>),
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
    // Holds programs and links; dropped last, it closes them.
    _ebpf: Ebpf,
    processes: HashMap<MapData, u32, Process>,
    sockets: HashMap<MapData, u64, u32>,
    doorbells: Array<MapData, Doorbell>,
    epoch: Array<MapData, u32>,
    epochs: u32,
    counters: PerCpuArray<MapData, Counters>,
    rings: Vec<RingBuf<MapData>>,
    wakeups: OwnedFd,
    logger: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
}

impl Probes {
    /// Loads the probes and attaches them. Nothing is traced before a process is entered by [`Self::trace`].
    pub fn attach(ring_bytes: u32) -> Result<Self, ProbeError> {
        if OBJECT.is_empty() {
            return Err(ProbeError::NotBuilt);
        }
        // Both parse the kernel's BTF, for about the same time.
        let (offsets, btf) = std::thread::scope(|scope| {
            let offsets = scope.spawn(offsets::read);
            let btf = Btf::from_sys_fs();
            (offsets.join(), btf)
        });
        let btf = btf.map_err(|e| unsupported("no type information of the kernel (BTF)", &e))?;
        let offsets = offsets
            .unwrap_or_else(|_| Err("the parser gave up".to_owned()))
            .map_err(|what| ProbeError::Unsupported {
                what,
                remedy: "a distribution kernel from 5.10 with CONFIG_DEBUG_INFO_BTF=y will do",
            })?;

        let mut loader = EbpfLoader::new();
        let wake_at = u64::from(ring_bytes / 4);
        loader
            .btf(Some(&btf))
            .override_global(ABI_GLOBAL, &1_u32, true)
            .override_global("OFFSETS", &offsets, true)
            .override_global("WAKE_AT", &wake_at, true);
        let cpus = aya::util::nr_cpus().unwrap_or(MAX_RINGS);
        for (ring, name) in RING_NAMES.iter().enumerate() {
            loader.map_max_entries(name, if ring < cpus { ring_bytes } else { 4096 });
        }
        let mut ebpf = loader
            .load(OBJECT)
            .map_err(|e| denied_or_failed("load the probes", e))?;
        attach_all(&mut ebpf, &btf)?;
        Self::open_maps(ebpf, cpus)
    }

    fn open_maps(mut ebpf: Ebpf, cpus: usize) -> Result<Self, ProbeError> {
        let logger = aya_log::EbpfLogger::init(&mut ebpf)
            .inspect_err(|e| tracing::debug!("no log from the probes: {e}"))
            .ok();
        let mut rings = Vec::new();
        let wakeups =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| failed("create an epoll", e))?;
        for name in RING_NAMES.iter().take(cpus) {
            let ring: RingBuf<MapData> = take(&mut ebpf, name)?;
            // Edge-triggered: a wakeup is an event of its own, whatever still lies in the ring.
            epoll::add(
                &wakeups,
                &ring,
                epoll::EventData::new_u64(0),
                epoll::EventFlags::IN | epoll::EventFlags::ET,
            )
            .map_err(|e| failed("watch a ring buffer", e))?;
            rings.push(ring);
        }
        Ok(Self {
            processes: take(&mut ebpf, "PROCESSES")?,
            sockets: take(&mut ebpf, "SOCKETS")?,
            doorbells: take(&mut ebpf, "DOORBELLS")?,
            epoch: take(&mut ebpf, "EPOCH")?,
            epochs: 0,
            counters: take(&mut ebpf, "COUNTERS")?,
            rings,
            wakeups,
            logger,
            _ebpf: ebpf,
        })
    }

    /// An fd that becomes readable when a ring buffer is a quarter full.
    pub fn wakeups(&self) -> io::Result<OwnedFd> {
        self.wakeups.try_clone()
    }

    /// Forgets wakeups that were seen.
    pub fn clear_wakeups(&self) {
        let mut events = Vec::with_capacity(MAX_RINGS);
        let zero = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if let Err(e) = epoll::wait(
            &self.wakeups,
            rustix::buffer::spare_capacity(&mut events),
            Some(&zero),
        ) {
            tracing::debug!(fd = self.wakeups.as_raw_fd(), "cannot clear wakeups: {e}");
        }
    }

    /// Enters a process into the tree, or replaces what the probes know of it.
    pub fn trace(&mut self, pid: u32, process: &Process) -> Result<(), MapError> {
        self.processes.insert(pid, process, 0)
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
        // Last, so that no fd is remembered as foreign with the new epoch.
        self.epochs = self.epochs.wrapping_add(1);
        self.epoch.set(0, self.epochs, 0)
    }

    /// Takes a socket out of the table.
    pub fn forget_socket(&mut self, inode: u64) {
        if let Err(e) = self.sockets.remove(&inode) {
            tracing::trace!(inode, "already forgotten: {e}");
        }
    }

    /// Hands every record that is there now to `each`, ring by ring; returns how many bytes were no record.
    pub fn drain(&mut self, mut each: impl FnMut(&Record)) -> u64 {
        let mut foreign = 0;
        for ring in &mut self.rings {
            while let Some(item) = ring.next() {
                match Record::from_bytes(&item) {
                    Some(record) => each(&record),
                    None => foreign += item.len() as u64,
                }
            }
        }
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
        foreign
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

const RING_NAMES: [&str; MAX_RINGS] = [
    "RING0", "RING1", "RING2", "RING3", "RING4", "RING5", "RING6", "RING7",
];

/// Programs by name, with their tracepoints; where two stand for one, the first that loads is used.
const PROGRAMS: [(&str, &[&str]); 4] = [
    ("sched_process_fork", &["shmtrace_fork"]),
    ("sched_process_exec", &["shmtrace_exec"]),
    ("sched_process_exit", &["shmtrace_exit"]),
    (
        "sched_switch",
        &["shmtrace_sched_switch", "shmtrace_sched_switch_old"],
    ),
];

/// Every system call of everybody, for kernels without [`AT_SOCKETS`].
const AT_CALLS: (&str, &str) = ("sys_exit", "shmtrace_sys_exit");

/// Where signals pass through sockets, with the programs there; from 6.3.
const AT_SOCKETS: [(&str, &str); 2] = [
    ("sock_send_length", "shmtrace_sent"),
    ("sock_recv_length", "shmtrace_received"),
];

/// What sockets do not see, and the program at these classic tracepoints.
const BESIDE_SOCKETS: (&str, [&str; 3]) = (
    "shmtrace_call",
    ["sys_exit_mmap", "sys_exit_sendto", "sys_exit_sendmsg"],
);

/// Attaches fork, exec and exit first, so that no child of a process entered later can be missed.
fn attach_all(ebpf: &mut Ebpf, btf: &Btf) -> Result<(), ProbeError> {
    for (tracepoint, variants) in PROGRAMS {
        let mut last = None;
        for name in variants {
            match attach_one(ebpf, btf, tracepoint, name) {
                Ok(()) => {
                    last = None;
                    break;
                }
                Err(e) => {
                    tracing::debug!(program = name, "not usable here: {e}");
                    last = Some(e);
                }
            }
        }
        if let Some(error) = last {
            return Err(denied_or_failed(
                &format!("attach to tracepoint {tracepoint}"),
                error,
            ));
        }
    }
    match attach_at_sockets(ebpf, btf) {
        Ok(()) => Ok(()),
        Err(e) => {
            tracing::debug!("watching all system calls, since sockets cannot be watched: {e}");
            let (tracepoint, name) = AT_CALLS;
            attach_one(ebpf, btf, tracepoint, name)
                .map_err(|e| denied_or_failed(&format!("attach to tracepoint {tracepoint}"), e))
        }
    }
}

/// Attaches the programs that watch sockets, all or none.
fn attach_at_sockets(ebpf: &mut Ebpf, btf: &Btf) -> Result<(), ProgramError> {
    let attached = AT_SOCKETS
        .into_iter()
        .try_for_each(|(tracepoint, name)| attach_one(ebpf, btf, tracepoint, name))
        .and_then(|()| attach_beside_sockets(ebpf));
    if attached.is_err() {
        let names = AT_SOCKETS.map(|(_, name)| name);
        for name in names.into_iter().chain([BESIDE_SOCKETS.0]) {
            let unloaded = match ebpf.program_mut(name) {
                Some(Program::BtfTracePoint(program)) => program.unload(),
                Some(Program::TracePoint(program)) => program.unload(),
                _ => Ok(()),
            };
            if let Err(e) = unloaded {
                tracing::trace!(program = name, "was not loaded: {e}");
            }
        }
    }
    attached
}

fn attach_beside_sockets(ebpf: &mut Ebpf) -> Result<(), ProgramError> {
    let (name, tracepoints) = BESIDE_SOCKETS;
    let program: &mut TracePoint = program(ebpf, name)?.try_into()?;
    program.load()?;
    let _mounted = Tracefs::mount_if_missing()?;
    for tracepoint in tracepoints {
        program.attach("syscalls", tracepoint)?;
    }
    Ok(())
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

/// Takes a map out of the object as the type it is used as.
pub(crate) fn take<T>(ebpf: &mut Ebpf, name: &str) -> Result<T, ProbeError>
where
    T: TryFrom<aya::maps::Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or_else(|| ProbeError::Failed {
        what: format!("find map {name} in the probes"),
        source: "the probes are of another version: build shmtrace again".into(),
    })?;
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
            // The verifier's refusal is EACCES too, but then it says why.
            if !error.to_string().contains("Verifier output: \n") && !is_root() {
                return ProbeError::NotPermitted(Box::new(error));
            }
        }
        cause = e.source();
    }
    failed(what, error)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
