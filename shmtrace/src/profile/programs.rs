//! The sampling programs: loading, attaching, reading what they summed up.

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{HashMap, MapData, MapError, PerCpuArray, StackTraceMap},
    programs::{
        BtfTracePoint, PerfEvent,
        perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
    },
};
use shmtrace_common::profile::{PROFILE_ABI_GLOBAL, Place, Trouble, Waiting};

use crate::probes::{ProbeError, denied_or_failed, failed, profile_offsets, take, unsupported};

/// The compiled programs; empty when the daemon was built without a BPF toolchain.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/profile"));

/// What is sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Where threads run: this many samples a second on each CPU.
    OnCpu {
        /// Samples a second.
        frequency: u64,
    },
    /// Where threads wait: every wait, in ns.
    OffCpu,
}

/// What could not be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Losses {
    /// Stacks: the table had another one in that place.
    pub stacks: u64,
    /// Samples or waits: a table was full.
    pub samples: u64,
    /// Processes that were not followed.
    pub processes: u64,
}

/// Loaded and attached programs. Dropping them detaches.
pub struct Programs {
    // Holds programs and links.
    _ebpf: Ebpf,
    tree: HashMap<MapData, u32, u32>,
    places: HashMap<MapData, Place, u64>,
    waiting: HashMap<MapData, u32, Waiting>,
    stacks: StackTraceMap<MapData>,
    troubles: PerCpuArray<MapData, u64>,
}

impl Programs {
    /// Loads and attaches. Nothing is sampled before a process is entered by [`Self::enter`].
    pub fn attach(kind: Kind) -> Result<Self, ProbeError> {
        if OBJECT.is_empty() {
            return Err(ProbeError::NotBuilt);
        }
        let btf = Btf::from_sys_fs()
            .map_err(|e| unsupported("no type information of the kernel (BTF)", &e))?;
        let offsets = profile_offsets()?;
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global(PROFILE_ABI_GLOBAL, &1_u32, true)
            .override_global("PROFILE_OFFSETS", &offsets, true)
            .load(OBJECT)
            .map_err(|e| denied_or_failed("load the sampling programs", e))?;
        // First, so that no child of a process entered later can be missed.
        for (name, tracepoint) in [
            ("profile_fork", "sched_process_fork"),
            ("profile_exit", "sched_process_exit"),
        ] {
            attach_tracepoint(&mut ebpf, &btf, name, tracepoint)?;
        }
        match kind {
            Kind::OnCpu { frequency } => attach_clock(&mut ebpf, frequency)?,
            Kind::OffCpu => attach_tracepoint(&mut ebpf, &btf, "profile_switch", "sched_switch")?,
        }
        Ok(Self {
            tree: take(&mut ebpf, "TREE")?,
            places: take(&mut ebpf, "PLACES")?,
            waiting: take(&mut ebpf, "WAITING")?,
            stacks: take(&mut ebpf, "STACKS")?,
            troubles: take(&mut ebpf, "TROUBLES")?,
            _ebpf: ebpf,
        })
    }

    /// Enters a process.
    pub fn enter(&mut self, pid: u32) -> Result<(), MapError> {
        self.tree.insert(pid, 1, 0)
    }

    /// Processes of the tree that live now.
    pub fn tree(&self) -> Vec<u32> {
        self.tree.keys().filter_map(Result::ok).collect()
    }

    /// Sums by place: samples, or ns of waits that are over.
    pub fn places(&self) -> Vec<(Place, u64)> {
        self.places.iter().filter_map(Result::ok).collect()
    }

    /// Threads that wait now, by tid.
    pub fn waiting(&self) -> Vec<(u32, Waiting)> {
        self.waiting.iter().filter_map(Result::ok).collect()
    }

    /// The addresses of a stack, innermost first; empty if it is not there.
    pub fn stack(&self, number: i32) -> Vec<u64> {
        let Ok(number) = u32::try_from(number) else {
            return Vec::new();
        };
        self.stacks
            .get(&number, 0)
            .map(|stack| stack.frames().iter().map(|frame| frame.ip).collect())
            .unwrap_or_default()
    }

    /// What could not be kept.
    pub fn losses(&self) -> Losses {
        let sum = |trouble: Trouble| {
            self.troubles
                .get(&(trouble as u32), 0)
                .map_or(0, |values| values.iter().sum())
        };
        Losses {
            stacks: sum(Trouble::StackLost),
            samples: sum(Trouble::PlacesFull) + sum(Trouble::WaitingFull),
            processes: sum(Trouble::ProcessesFull),
        }
    }
}

fn attach_tracepoint(
    ebpf: &mut Ebpf,
    btf: &Btf,
    name: &str,
    tracepoint: &str,
) -> Result<(), ProbeError> {
    let what = format!("attach to tracepoint {tracepoint}");
    let program: &mut BtfTracePoint = program(ebpf, name)?
        .try_into()
        .map_err(|e| failed(&what, e))?;
    program
        .load(tracepoint, btf)
        .map_err(|e| denied_or_failed(&what, e))?;
    program.attach().map_err(|e| denied_or_failed(&what, e))?;
    Ok(())
}

fn attach_clock(ebpf: &mut Ebpf, frequency: u64) -> Result<(), ProbeError> {
    const WHAT: &str = "sample the clocks of the CPUs";
    crate::probes::can_sample().map_err(|error| ProbeError::Unsupported {
        what: format!("perf_event_open is refused: {error}"),
        remedy: "run it with sudo, outside of a container, or set kernel.perf_event_paranoid to 1 or less; --off-cpu \
                 needs no perf events",
    })?;
    let program: &mut PerfEvent = program(ebpf, "profile_tick")?
        .try_into()
        .map_err(|e| failed(WHAT, e))?;
    program.load().map_err(|e| denied_or_failed(WHAT, e))?;
    let cpus = aya::util::online_cpus().map_err(|(_, e)| failed("list the CPUs", e))?;
    for cpu in cpus {
        program
            .attach(
                PerfEventConfig::Software(SoftwareEvent::CpuClock),
                PerfEventScope::AllProcessesOneCpu { cpu },
                SamplePolicy::Frequency(frequency),
                false,
            )
            .map_err(|e| denied_or_failed(WHAT, e))?;
    }
    Ok(())
}

fn program<'a>(
    ebpf: &'a mut Ebpf,
    name: &str,
) -> Result<&'a mut aya::programs::Program, ProbeError> {
    ebpf.program_mut(name).ok_or_else(|| ProbeError::Failed {
        what: format!("find program {name}"),
        source: "the programs are of another version: build shmtrace again".into(),
    })
}
