//! One datagram, sent as the producer would send it.

use std::{io, os::fd::OwnedFd};

use anyhow::Context as _;
use rustix::{
    net::{SendFlags, send},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};
use shmtrace_engine::{Direction, LaneId, ProcId, SocketInode};

use crate::{discover::Discovery, exit::Refusal};

/// What transports send; nobody looks at it.
const TOKEN: [u8; 1] = [1];

/// Rings the doorbell of a lane on its producer's end.
pub(super) fn once(world: &Discovery, lane: LaneId) -> anyhow::Result<()> {
    let binding = world.hub(lane.hub).and_then(|hub| hub.binding(lane.peer));
    let (producer, end) = match (binding, lane.direction) {
        (Some(binding), Direction::ToPeer) => (binding.host, binding.host_end),
        (Some(binding), Direction::ToHost) => (binding.plugin, binding.plugin_end),
        (None, _) => (None, None),
    };
    let (Some(producer), Some(end)) = (producer, end) else {
        anyhow::bail!(
            "the producer of {} of peer {} or its doorbell is not known: is it still alive? see `shmtrace inspect`",
            lane.direction,
            lane.peer.0
        );
    };
    let fd = world
        .fd_of(producer, end)
        .with_context(|| format!("pid {} has closed its end of the doorbell", producer.pid))?;
    let socket = copy_of(producer, fd, end)?;
    match send(&socket, &TOKEN, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        // AGAIN: a signal is pending already, as for the producer.
        Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
        Err(error) => Err(io::Error::from(error)).context("the doorbell cannot be rung"),
    }
}

/// A copy of the producer's fd, checked to be that socket of that incarnation.
fn copy_of(producer: ProcId, fd: u32, end: SocketInode) -> anyhow::Result<OwnedFd> {
    let pid = i32::try_from(producer.pid).ok().and_then(Pid::from_raw);
    let pid = pid.with_context(|| format!("{} is no pid", producer.pid))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())
        .map_err(io::Error::from)
        .with_context(|| format!("pid {} is gone", producer.pid))?;
    let copy = match pidfd_getfd(&pidfd, fd.cast_signed(), PidfdGetfdFlags::empty()) {
        Ok(copy) => copy,
        Err(rustix::io::Errno::PERM) => {
            return Err(Refusal::not_permitted(format!(
                "not permitted to copy a doorbell of pid {}: run it with sudo",
                producer.pid
            ))
            .into());
        }
        Err(error) => return Err(io::Error::from(error)).context("cannot copy the doorbell"),
    };
    // Whatever the fd or the pid has become meanwhile: the socket's inode is its identity.
    let found = rustix::fs::fstat(&copy).map_err(io::Error::from)?.st_ino;
    anyhow::ensure!(
        found == end.0,
        "fd {fd} of pid {} is another file by now",
        producer.pid
    );
    Ok(copy)
}
