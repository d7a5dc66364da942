//! Names for what findings carry as ids: hubs, peers, processes.

use std::collections::BTreeMap;

use shmtrace_engine::{
    HubId, PeerId, ProcId,
    input::{PeerBinding, Topology},
};

/// Who is called what. Keeps the names of what is gone, since findings may still speak of it.
#[derive(Debug, Default)]
pub struct Directory {
    hubs: BTreeMap<HubId, String>,
    peers: BTreeMap<(HubId, PeerId), PeerBinding>,
    processes: BTreeMap<ProcId, String>,
}

/// Names kept of processes; the oldest go first.
const MOST_PROCESSES: usize = 16_384;

impl Directory {
    /// Takes note of a change.
    pub fn note(&mut self, topology: &Topology) {
        match topology {
            Topology::Hub { hub, path } => {
                self.hubs.insert(*hub, path.clone());
            }
            Topology::Peer(binding) => {
                let known = self
                    .peers
                    .entry((binding.hub, binding.peer))
                    .or_insert_with(|| binding.clone());
                // A plugin that ended is still who the peer was.
                let ended = binding.plugin.is_none() && known.plugin.is_some();
                *known = if ended {
                    PeerBinding {
                        flags: binding.flags,
                        ..known.clone()
                    }
                } else {
                    binding.clone()
                };
            }
            Topology::Process { proc, name } => {
                if self.processes.len() >= MOST_PROCESSES {
                    // Start times grow, pids do not: whichever goes, its name is shown as its pid from then on.
                    self.processes.pop_first();
                }
                self.processes.insert(*proc, name.clone());
            }
            Topology::HubGone { .. } | Topology::ProcessExited { .. } => {}
        }
    }

    /// The hub's path.
    pub fn hub(&self, hub: HubId) -> Option<&str> {
        self.hubs.get(&hub).map(String::as_str)
    }

    /// Every hub seen.
    pub fn hubs(&self) -> impl Iterator<Item = (HubId, &str)> {
        self.hubs.iter().map(|(id, path)| (*id, path.as_str()))
    }

    /// What is known of a peer.
    pub fn peer(&self, hub: HubId, peer: PeerId) -> Option<&PeerBinding> {
        self.peers.get(&(hub, peer))
    }

    /// Every peer seen.
    pub fn peers(&self) -> impl Iterator<Item = &PeerBinding> {
        self.peers.values()
    }

    /// The process's name, or its pid.
    pub fn process(&self, proc: ProcId) -> String {
        self.processes
            .get(&proc)
            .cloned()
            .unwrap_or_else(|| format!("pid {}", proc.pid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_a_process_without_one_is_its_pid() {
        let mut names = Directory::default();
        let proc = |pid| ProcId { pid, start: 1 };
        let most = MOST_PROCESSES as u32;
        for pid in 1..=most + 1 {
            let name = format!("p{pid}");
            let proc = proc(pid);
            names.note(&Topology::Process { proc, name });
        }
        assert_eq!(names.processes.len(), MOST_PROCESSES);
        assert_eq!(names.process(proc(1)), "pid 1");
        assert_eq!(names.process(proc(most + 1)), format!("p{}", most + 1));
    }
}
