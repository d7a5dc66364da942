//! A hub whose owner writes anything, before and while it is read.

use std::{
    fs::File,
    os::{fd::AsRawFd as _, unix::fs::FileExt as _, unix::fs::MetadataExt as _},
    path::PathBuf,
};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use shmtrace_engine::Direction;

use super::sink::assert_harmless;
use crate::{
    commands::inspect::printed,
    hub::{Glance, HubReader, check},
};

/// Acts against the file while it is read.
const MOST_ACTS: usize = 8;
/// Bytes of an act: what, where, how much.
const ACT: usize = 7;

/// The first byte says how many acts follow; what comes after them is the file.
pub fn hub(data: &[u8]) {
    let Some((count, rest)) = data.split_first() else {
        return;
    };
    let acts = (usize::from(*count) % (MOST_ACTS + 1)).min(rest.len() / ACT);
    let (acts, bytes) = rest.split_at(acts * ACT);
    // In memory, as a hub on a tmpfs: a hole that is read through a mapping would become a page.
    let Ok(file) = memfd_create("hub", MemfdFlags::CLOEXEC).map(File::from) else {
        return;
    };
    if file.write_all_at(bytes, 0).is_err() {
        return;
    }
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let _header = HubReader::header_of(&path);
    let _refused = HubReader::open_path(&path).map_err(|error| assert_harmless(&error.to_string()));
    let Ok((reader, problem)) = HubReader::open_damaged(&path) else {
        return;
    };
    let problem = problem.map(|problem| problem.to_string());
    for text in printed(&reader, problem) {
        assert_harmless(&text);
    }
    read_all(&reader, &reader.glance());
    for act in acts.chunks_exact(ACT) {
        // A look from before, so that loads really come to pages that are gone.
        let glance = reader.glance();
        do_act(&file, act, bytes.len() as u64);
        read_all(&reader, &glance);
        drop(glance);
        let pages = file.metadata().map(|metadata| metadata.blocks()).ok();
        read_all(&reader, &reader.glance());
        let now = file.metadata().map(|metadata| metadata.blocks()).ok();
        assert_eq!(pages, now, "reading made pages in the file");
    }
    let _any = check(&reader);
}

/// Cuts or grows the file, punches a hole, or writes a word.
fn do_act(file: &File, act: &[u8], size: u64) {
    let word = |at: usize| u64::from(u16::from_ne_bytes([act[at], act[at + 1]]));
    let (place, amount) = (word(1) * 4 % (size + 1), word(3) << 2 | 4);
    let done = match act[0] % 4 {
        0 => file.set_len(place),
        1 => file.set_len(size + place),
        2 => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(file, flags, place, amount).map_err(Into::into)
        }
        _ => file.write_all_at(&act[3..ACT], place),
    };
    // What fails is no attack.
    drop(done);
}

fn read_all(reader: &HubReader, glance: &Glance<'_>) {
    let _any = (reader.header(), reader.is_intact());
    for id in reader.peers() {
        let _entry = glance.peer_entry(id);
        for direction in [Direction::ToHost, Direction::ToPeer] {
            if let Some(ring) = glance.ring(id, direction) {
                let (head, tail) = (ring.indexes.head, ring.indexes.tail);
                let waiting = reader.descriptors(id, direction, tail, head);
                assert!(waiting.len() <= reader.geometry().ring_capacity as usize);
            }
        }
    }
}
