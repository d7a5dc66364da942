use shm_transport::layout::peer::{FLAG_ACTIVE, FLAG_DEAD, FLAG_RESERVED};

use super::*;
use crate::process::HeldSocket;

/// A constellation built step by step.
#[derive(Default)]
struct World {
    entries: Vec<PeerEntry>,
    processes: Vec<(ProcId, u32, Claim, Sockets, bool)>,
    pairs: Pairs,
    before: Settled,
    inferred: BTreeMap<SocketInode, PeerId>,
    used: BTreeMap<u32, BTreeSet<SocketInode>>,
}

impl World {
    fn peer(&mut self, id: u16, flags: u32) {
        self.entries.retain(|entry| entry.id.0 != id);
        self.entries.push(PeerEntry {
            id: PeerId(id),
            stated_id: id,
            flags,
            epoch: 0,
            last_seen: 0,
            send_ring: 0,
            recv_ring: 0,
        });
    }

    fn process(&mut self, pid: u32, parent: u32, claim: Option<(u16, u32)>, fds: &[(u32, u64)]) {
        let claim = Claim {
            hub_path: None,
            peer: claim.map(|(peer, _)| PeerId(peer)),
            doorbell_fd: claim.map(|(_, fd)| fd),
        };
        let held = fds.iter().map(|(fd, inode)| HeldSocket {
            inode: SocketInode(*inode),
            fd: *fd,
        });
        let sockets = Sockets {
            held: held.collect(),
            ..Sockets::default()
        };
        self.processes
            .push((proc(pid), parent, claim, sockets, false));
    }

    fn settle(&self) -> Settled {
        let nothing = BTreeSet::new();
        let pids: Vec<[u32; 1]> = self.processes.iter().map(|(id, ..)| [id.pid]).collect();
        let participants: Vec<_> = self
            .processes
            .iter()
            .zip(&pids)
            .map(
                |((id, parent, claim, sockets, is_fresh_copy), pids)| Participant {
                    id: *id,
                    parent: *parent,
                    ancestors: vec![*parent],
                    claim,
                    claims_this_hub: claim.peer.is_some(),
                    sockets,
                    used: self.used.get(&id.pid).unwrap_or(&nothing),
                    pids,
                    is_fresh_copy: *is_fresh_copy,
                },
            )
            .collect();
        settle(&Facts {
            path: "/tmp/dodeca-hub-100.shm",
            entries: &self.entries,
            participants: &participants,
            pairs: &self.pairs,
            before: &self.before,
            inferred: &self.inferred,
        })
    }
}

fn proc(pid: u32) -> ProcId {
    ProcId {
        pid,
        start: u64::from(pid) * 10,
    }
}

fn binding(pid: u32, host_end: u64, plugin_end: u64) -> Binding {
    Binding {
        plugin: Some(proc(pid)),
        host_end: Some(SocketInode(host_end)),
        plugin_end: Some(SocketInode(plugin_end)),
    }
}

/// Host 100 with plugins 101 and 102 as rapace starts them: the later plugin inherits the host's ends.
fn rapace(with_arguments: bool) -> World {
    let mut world = World::default();
    world.pairs.insert_pair(10, 11);
    world.pairs.insert_pair(20, 21);
    world.peer(0, FLAG_ACTIVE);
    world.peer(1, FLAG_ACTIVE);
    world.process(100, 1, None, &[(5, 10), (7, 20)]);
    world.process(
        101,
        100,
        with_arguments.then_some((0, 6)),
        &[(5, 10), (6, 11)],
    );
    world.process(
        102,
        100,
        with_arguments.then_some((1, 8)),
        &[(5, 10), (7, 20), (8, 21)],
    );
    world
}

#[test]
fn command_lines_settle_everything_although_fds_are_inherited() {
    let settled = rapace(true).settle();
    assert_eq!(settled.host, Some(proc(100)));
    assert_eq!(settled.bindings[&PeerId(0)], binding(101, 10, 11));
    assert_eq!(settled.bindings[&PeerId(1)], binding(102, 20, 21));
    assert!(
        settled.loose.is_empty() && settled.open_peers.is_empty() && settled.candidates.is_empty()
    );
}

#[test]
fn without_arguments_the_doorbells_are_found_and_the_ids_stay_open() {
    let settled = rapace(false).settle();
    assert_eq!(settled.host, Some(proc(100)));
    assert_eq!(settled.open_peers, [PeerId(0), PeerId(1)]);
    let loose: Vec<_> = settled
        .loose
        .iter()
        .map(|loose| (loose.plugin.pid, loose.host_end.0))
        .collect();
    assert_eq!(loose, [(101, 10), (102, 20)]);
}

#[test]
fn what_was_inferred_settles_one_and_elimination_the_other() {
    let mut world = rapace(false);
    world.inferred.insert(SocketInode(10), PeerId(1));
    let settled = world.settle();
    assert_eq!(settled.bindings[&PeerId(1)], binding(101, 10, 11));
    assert_eq!(settled.bindings[&PeerId(0)], binding(102, 20, 21));
}

#[test]
fn a_reserved_entry_is_nobodys_by_elimination() {
    let mut world = rapace(false);
    world.inferred.insert(SocketInode(10), PeerId(1));
    world.peer(0, FLAG_RESERVED);
    assert_eq!(world.settle().open_peers, [PeerId(0)]);
}

#[test]
fn a_claimed_fd_that_is_no_doorbell_is_not_believed() {
    let mut world = rapace(true);
    // Plugin 101 says its doorbell is fd 9, which is no socket; its own pair is found all the same.
    world.processes[1].2.doorbell_fd = Some(9);
    assert_eq!(world.settle().bindings[&PeerId(0)], binding(101, 10, 11));
    // And if its fd is a socket without a peer, too.
    world.processes[1].3.held.push(HeldSocket {
        inode: SocketInode(99),
        fd: 9,
    });
    assert_eq!(world.settle().bindings[&PeerId(0)], binding(101, 10, 11));
}

#[test]
fn a_host_that_keeps_the_plugins_ends_does_not_confuse() {
    let mut world = rapace(false);
    world.processes[0]
        .3
        .held
        .extend([(30, 11), (31, 21)].map(|(fd, inode)| HeldSocket {
            inode: SocketInode(inode),
            fd,
        }));
    // Plugin 102 inherited plugin 101's end as well.
    world.processes[2].3.held.push(HeldSocket {
        inode: SocketInode(11),
        fd: 30,
    });
    // Which end is whose cannot be told from that alone...
    assert!(
        !world
            .settle()
            .loose
            .iter()
            .any(|loose| loose.plugin.pid == 102)
    );
    // ...but a plugin watches its own.
    world.processes[2].3.watched = vec![SocketInode(21)];
    let settled = world.settle();
    assert!(
        settled
            .loose
            .iter()
            .any(|loose| loose.plugin.pid == 102 && loose.plugin_end.0 == 21)
    );
}

#[test]
fn a_child_that_has_not_executed_yet_takes_nobodys_place() {
    let mut world = rapace(true);
    // A copy of plugin 101: same command line, same sockets.
    let mut copy = world.processes[1].clone();
    (copy.0, copy.1) = (proc(103), 101);
    world.processes.push(copy);
    // A copy of the host.
    let mut copy = world.processes[0].clone();
    (copy.0, copy.1, copy.4) = (proc(104), 100, true);
    world.processes.push(copy);
    let settled = world.settle();
    assert_eq!(settled.host, Some(proc(100)));
    assert_eq!(settled.bindings[&PeerId(0)], binding(101, 10, 11));
}

#[test]
fn a_plugin_that_died_keeps_its_entry_until_the_host_gives_it_up_or_out() {
    let mut world = rapace(true);
    world.before = world.settle();
    world.processes.remove(1);
    let settled = world.settle();
    assert_eq!(
        settled.bindings[&PeerId(0)],
        binding(101, 10, 11),
        "entry still says active"
    );
    assert!(settled.open_peers.is_empty());

    world.peer(0, FLAG_RESERVED);
    assert_eq!(
        world.settle().bindings[&PeerId(0)].plugin,
        None,
        "given out anew"
    );
    world.peer(0, FLAG_DEAD);
    assert_eq!(world.settle().bindings[&PeerId(0)].plugin, None, "given up");
}

#[test]
fn a_plugin_that_comes_back_under_the_same_id_is_the_new_one() {
    let mut world = rapace(true);
    world.before = world.settle();
    world.processes.remove(1);
    world.pairs.insert_pair(30, 31);
    world.processes[0].3.held.push(HeldSocket {
        inode: SocketInode(30),
        fd: 12,
    });
    world.process(110, 100, Some((0, 13)), &[(12, 30), (13, 31)]);
    assert_eq!(world.settle().bindings[&PeerId(0)], binding(110, 30, 31));
    // Also while the old one still is there.
    world.process(101, 100, Some((0, 6)), &[(5, 10), (6, 11)]);
    assert_eq!(world.settle().bindings[&PeerId(0)], binding(110, 30, 31));
}

#[test]
fn a_plugin_alone_leaves_the_host_open() {
    let mut world = rapace(true);
    world.processes.remove(0);
    let settled = world.settle();
    assert_eq!(settled.host, None);
    assert_eq!(settled.bindings[&PeerId(0)], binding(101, 10, 11));
}

#[test]
fn host_by_file_name_without_any_socket() {
    let mut world = World::default();
    world.peer(0, FLAG_ACTIVE);
    world.process(99, 1, None, &[]);
    world.process(100, 1, None, &[]);
    let settled = world.settle();
    assert_eq!(settled.host, Some(proc(100)));
    assert_eq!(
        settled.bindings[&PeerId(0)].plugin,
        Some(proc(99)),
        "the only one left"
    );
}

#[test]
fn numbers_in_file_names_are_whole() {
    assert!(file_name_has("/tmp/dodeca-hub-100.shm", 100));
    assert!(!file_name_has("/tmp/dodeca-hub-1001.shm", 100));
    assert!(!file_name_has("/100/dodeca-hub-7.shm", 100));
}
