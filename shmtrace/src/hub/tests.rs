use std::{fs::File, os::unix::fs::MetadataExt as _};

use proptest::prelude::*;
use shm_transport::layout::{class, desc, hub, peer, slot};
use shmtrace_engine::input::Indexes;

use super::{
    fixture::{CAPACITY, Fixture, PEERS, classes_at, descriptor_at, ring_at, slot_at},
    *,
};

const PEER: PeerId = PeerId(2);

#[test]
fn a_hub_is_read_with_peers_and_rings() {
    let mut fixture = Fixture::new();
    fixture.set_ring(PEER, Direction::ToPeer, 41, 40);
    fixture.set(
        hub::SIZE + 2 * peer::SIZE + peer::FLAGS,
        &peer::FLAG_ACTIVE.to_ne_bytes(),
    );
    let reader = HubReader::open_path(&fixture.write()).unwrap();
    assert!(reader.is_intact());
    assert_eq!(reader.peers().count(), usize::from(PEERS));

    let glance = reader.glance();
    let ring = glance.ring(PEER, Direction::ToPeer).unwrap();
    assert_eq!(ring.indexes, Indexes { head: 41, tail: 40 });
    assert!(ring.stable);
    assert_eq!(ring.capacity, CAPACITY);
    assert_eq!(
        glance.ring(PEER, Direction::ToHost).unwrap().indexes,
        Indexes::default()
    );
    assert_eq!(glance.ring(PeerId(PEERS), Direction::ToHost), None);
    let entry = glance.peer_entry(PEER).unwrap();
    assert!(entry.is_expected_alive());
    assert_eq!(entry.recv_ring, ring_at(PEER, Direction::ToPeer) as u64);
    assert!(!glance.peer_entry(PeerId(0)).unwrap().is_used());
}

#[test]
fn a_later_glance_sees_what_was_written_since() {
    let mut fixture = Fixture::new();
    let reader = HubReader::open_path(&fixture.write()).unwrap();
    assert_eq!(
        reader
            .glance()
            .ring(PEER, Direction::ToHost)
            .unwrap()
            .indexes
            .head,
        0
    );
    fixture.set_ring(PEER, Direction::ToHost, 3, 1);
    assert_eq!(
        reader
            .glance()
            .ring(PEER, Direction::ToHost)
            .unwrap()
            .indexes
            .len(),
        2
    );
}

#[test]
fn descriptors_are_read_around_the_rings_end() {
    let mut fixture = Fixture::new();
    for index in 6..11_u64 {
        let at = descriptor_at(PEER, Direction::ToPeer, index);
        fixture.set(at + desc::MSG_ID, &(100 + index).to_ne_bytes());
        fixture.set(at + desc::PAYLOAD_SLOT, &(3_u32 << 29 | 7).to_ne_bytes());
    }
    let reader = HubReader::open_path(&fixture.write()).unwrap();
    let found = reader.descriptors(PEER, Direction::ToPeer, 6, 11);
    let ids: Vec<_> = found
        .iter()
        .map(|(index, descriptor)| (*index, descriptor.msg_id))
        .collect();
    assert_eq!(ids, [(6, 106), (7, 107), (8, 108), (9, 109), (10, 110)]);
    assert_eq!(found[0].1.slot(), Some((3, 7)));
    // A hostile head asks for no more than a ring full.
    assert_eq!(
        reader
            .descriptors(PEER, Direction::ToPeer, 0, u64::MAX)
            .len(),
        CAPACITY as usize
    );
}

#[test]
fn a_file_cut_anywhere_is_an_error_or_is_read_without_harm() {
    let fixture = Fixture::new();
    let path = fixture.write();
    let file = File::options().write(true).open(&path).unwrap();
    let control = classes_at() + class::COUNT * class::SIZE;
    for size in (0..fixture.bytes.len()).rev() {
        file.set_len(size as u64).unwrap();
        match HubReader::open_path(&path) {
            Ok(reader) => {
                assert!(size >= control, "{size}");
                let _any = reader.scan_slots();
                assert!(reader.glance().ring(PEER, Direction::ToHost).is_some());
            }
            Err(error) => {
                assert!(size < control, "{size}: {error}");
                let expected = if size < hub::SIZE {
                    "shorter than a hub's header"
                } else {
                    "is cut short"
                };
                assert!(error.to_string().contains(expected), "{size}: {error}");
            }
        }
    }
}

#[test]
fn other_files_and_versions_are_refused_with_a_remedy() {
    let mut fixture = Fixture::new();
    fixture.set(hub::VERSION, &0x0002_0001_u32.to_ne_bytes());
    let error = HubReader::open_path(&fixture.write()).unwrap_err();
    assert!(error.to_string().contains("format version 2.1"), "{error}");
    fixture.set(0, b"NOTAHUB\0");
    let error = HubReader::open_path(&fixture.path()).unwrap_err();
    assert!(matches!(error.problem, HubProblem::NoMagic), "{error}");
    let error = HubReader::open_path(std::path::Path::new("/dev/zero")).unwrap_err();
    assert!(matches!(error.problem, HubProblem::NotRegular), "{error}");
    let fifo = fixture.path().with_extension("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    let error = HubReader::open_path(&fifo).unwrap_err();
    assert!(matches!(error.problem, HubProblem::NotRegular), "{error}");
}

#[test]
fn absurd_headers_are_refused() {
    for (field, value) in [
        (hub::MAX_PEERS, &[0, 0][..]),
        (hub::MAX_PEERS, &[33, 0]),
        (hub::RING_CAPACITY, &3_u32.to_ne_bytes()),
        (hub::RING_CAPACITY, &(1_u32 << 31).to_ne_bytes()),
        (hub::PEER_TABLE_OFFSET, &0_u64.to_ne_bytes()),
        (hub::RING_REGION_OFFSET, &(u64::MAX - 63).to_ne_bytes()),
        (hub::SIZE_CLASS_OFFSET, &(1_u64 << 40).to_ne_bytes()),
        (hub::EXTENT_REGION_OFFSET, &u64::MAX.to_ne_bytes()),
    ] {
        let mut fixture = Fixture::new();
        fixture.set(field, value);
        let error = HubReader::open_path(&fixture.write()).unwrap_err();
        assert!(
            matches!(error.problem, HubProblem::Absurd { .. }),
            "{field}: {error}"
        );
    }
}

/// The file really shrinks under the mapping: the next load raises a real SIGBUS.
#[test]
fn a_file_that_shrinks_while_mapped_kills_nobody() {
    let mut fixture = Fixture::new();
    fixture.set_ring(PEER, Direction::ToPeer, 5, 1);
    let path = fixture.write();
    let reader = HubReader::open_path(&path).unwrap();
    let glance = reader.glance();
    assert_eq!(
        glance.ring(PEER, Direction::ToPeer).unwrap().indexes.len(),
        4
    );
    // After the residency check, so that the loads do fault.
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(0)
        .unwrap();
    assert_eq!(glance.ring(PEER, Direction::ToPeer), None);
    assert_eq!(glance.ring(PEER, Direction::ToPeer), None, "and again");
    assert!(!reader.is_intact());
    drop(glance);

    // Another hub is not affected by that one's loss.
    let other = Fixture::new();
    let other = HubReader::open_path(&other.write()).unwrap();
    assert!(other.is_intact());
}

#[test]
fn a_shrunk_file_is_seen_without_a_fault_and_a_regrown_one_is_not_trusted() {
    let fixture = Fixture::new();
    let path = fixture.write();
    let reader = HubReader::open_path(&path).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(100).unwrap();
    assert!(!reader.is_intact());
    assert_eq!(reader.glance().ring(PEER, Direction::ToPeer), None);
    file.set_len(fixture.bytes.len() as u64).unwrap();
    assert!(!reader.is_intact(), "its header is gone");
}

#[test]
fn reading_allocates_nothing_in_the_holes_of_a_tmpfs_file() {
    let fixture = Fixture::new();
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = folder.path().join("sparse.shm");
    // Only the header is written: rings, entries and classes are holes; the file is long enough for several pages.
    let file = File::create(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &fixture.bytes[..hub::SIZE], 0).unwrap();
    let before = file.metadata().unwrap().blocks();
    let reader = HubReader::open_path(&path).unwrap();
    for _ in 0..3 {
        let glance = reader.glance();
        for id in reader.peers() {
            assert_eq!(
                glance.ring(id, Direction::ToPeer).unwrap().indexes,
                Indexes::default()
            );
            assert!(glance.peer_entry(id).is_some());
        }
        let _any = reader.scan_slots();
        let _any = reader.descriptors(PEER, Direction::ToHost, 0, 100);
    }
    assert_eq!(file.metadata().unwrap().blocks(), before);

    // The same after a hole is punched under the mapping.
    std::os::unix::fs::FileExt::write_all_at(&file, &fixture.bytes, 0).unwrap();
    assert!(reader.glance().ring(PEER, Direction::ToPeer).is_some());
    rustix::fs::fallocate(
        &file,
        rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
        0,
        1 << 20,
    )
    .unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), 0);
    let glance = reader.glance();
    for id in reader.peers() {
        assert_eq!(
            glance.ring(id, Direction::ToHost).unwrap().indexes,
            Indexes::default()
        );
    }
    assert_eq!(file.metadata().unwrap().blocks(), 0);
    assert!(!reader.is_intact());
}

#[test]
fn slots_are_counted_by_state_and_the_free_list_is_checked() {
    let mut fixture = Fixture::new();
    let reader = HubReader::open_path(&fixture.write()).unwrap();
    let scan = reader.scan_slots();
    for class in &scan.classes {
        assert!(class.steady);
        assert_eq!(class.problems, Vec::<String>::new());
        assert_eq!((class.observation().free, class.listed), (4, 4));
    }
    // Slot 0 of class 1 is popped and in flight.
    fixture.set(
        classes_at() + class::SIZE + class::FREE_HEAD,
        &(1_u64 << 32 | 1).to_ne_bytes(),
    );
    fixture.set(
        slot_at(1, 0) + slot::STATE,
        &slot::STATE_IN_FLIGHT.to_ne_bytes(),
    );
    fixture.set(slot_at(1, 0) + slot::GENERATION, &9_u32.to_ne_bytes());
    let class = &reader.scan_slots().classes[1];
    assert_eq!(class.problems, Vec::<String>::new());
    assert_eq!(
        (class.observation().free, class.observation().in_flight),
        (3, 1)
    );
    assert_eq!(class.slot(0).unwrap().generation, 9);
}

#[test]
fn each_fault_of_a_free_list_is_named() {
    let free_head = classes_at() + class::FREE_HEAD;
    let faults: [(usize, u32, &str); 6] = [
        (slot_at(0, 3) + slot::NEXT_FREE, 1, "leads to slot 1 twice"),
        (
            slot_at(0, 1) + slot::NEXT_FREE,
            77,
            "leads to slot 77, which does not exist",
        ),
        (
            slot_at(0, 2) + slot::STATE,
            2,
            "leads to slot 2, which is in state 2",
        ),
        (
            slot_at(0, 1) + slot::NEXT_FREE,
            u32::MAX,
            "4 slots are free, and its free list has 2",
        ),
        (slot_at(0, 0) + slot::STATE, 9, "slot 0 is in state 9"),
        (
            classes_at() + class::TOTAL_SLOTS,
            5,
            "says 5 slots, its extents have 4",
        ),
    ];
    for (at, value, expected) in faults {
        let mut fixture = Fixture::new();
        fixture.set(at, &value.to_ne_bytes());
        assert_eq!(fixture.bytes[free_head], 0);
        let reader = HubReader::open_path(&fixture.write()).unwrap();
        let problems = &reader.scan_slots().classes[0].problems;
        assert!(
            problems.iter().any(|problem| problem.contains(expected)),
            "{expected}: {problems:?}"
        );
    }
}

/// Reads everything there is to read.
fn read_all(reader: &HubReader) {
    let glance = reader.glance();
    for id in reader.peers() {
        let _any = glance.peer_entry(id);
        for direction in [Direction::ToHost, Direction::ToPeer] {
            if let Some(ring) = glance.ring(id, direction) {
                let _any = reader.descriptors(id, direction, ring.indexes.tail, ring.indexes.head);
            }
        }
    }
    let _any = reader.scan_slots();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_bytes_after_the_magic_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let mut fixture = Fixture::new();
        fixture.bytes.truncate(8);
        fixture.bytes.extend(bytes);
        if let Ok(reader) = HubReader::open_path(&fixture.write()) {
            read_all(&reader);
        }
    }

    #[test]
    fn random_changes_of_a_hub_are_survived(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..64),
    ) {
        let mut fixture = Fixture::new();
        let size = fixture.bytes.len();
        for (at, value) in changes {
            fixture.bytes[at.index(size)] = value;
        }
        if let Ok(reader) = HubReader::open_path(&fixture.write()) {
            read_all(&reader);
        }
    }

    #[test]
    fn random_headers_are_survived(words in proptest::collection::vec(any::<u64>(), 31)) {
        let mut fixture = Fixture::new();
        for (number, word) in words.iter().enumerate() {
            fixture.bytes[8 + number * 8..16 + number * 8].copy_from_slice(&word.to_ne_bytes());
        }
        fixture.bytes[hub::VERSION..hub::VERSION + 4].copy_from_slice(&0x1_0000_u32.to_ne_bytes());
        if let Ok(reader) = HubReader::open_path(&fixture.write()) {
            read_all(&reader);
        }
    }
}

#[test]
fn a_sound_hub_passes_the_check_and_each_fault_is_named() {
    let reader = |fixture: &Fixture| HubReader::open_path(&fixture.write()).unwrap();
    assert_eq!(check(&reader(&Fixture::new())), Vec::<String>::new());
    let entry = hub::SIZE + 2 * peer::SIZE;
    let faults: [(usize, Vec<u8>, &str); 6] = [
        (
            hub::CURRENT_SIZE,
            u64::MAX.to_ne_bytes().into(),
            "bytes are in use",
        ),
        (
            entry + peer::SEND_RING_OFFSET,
            64_u64.to_ne_bytes().into(),
            "its entry says offset 64",
        ),
        (entry + peer::FLAGS, vec![1, 0, 0, 0], ""),
        (
            ring_at(PEER, Direction::ToHost) + 64,
            vec![1],
            "tail 1 is beyond head 0",
        ),
        (
            ring_at(PEER, Direction::ToHost),
            vec![9],
            "9 entries wait in 8 places",
        ),
        (
            ring_at(PEER, Direction::ToPeer) + 128,
            vec![7],
            "says capacity 7",
        ),
    ];
    for (at, value, expected) in faults {
        let mut fixture = Fixture::new();
        fixture.set(at, &value);
        let problems = check(&reader(&fixture));
        if expected.is_empty() {
            assert_eq!(problems, Vec::<String>::new());
        } else {
            assert!(
                problems.iter().any(|problem| problem.contains(expected)),
                "{expected}: {problems:?}"
            );
        }
    }
}

#[test]
fn waiting_descriptors_must_refer_to_slots_in_flight() {
    let mut fixture = Fixture::new();
    fixture.set_ring(PEER, Direction::ToPeer, 2, 0);
    for index in 0..2 {
        let at = descriptor_at(PEER, Direction::ToPeer, index);
        fixture.set(at + desc::PAYLOAD_SLOT, &(1_u32 << 29).to_ne_bytes());
        fixture.set(at + desc::PAYLOAD_GENERATION, &9_u32.to_ne_bytes());
    }
    fixture.set(slot_at(1, 0) + slot::GENERATION, &9_u32.to_ne_bytes());
    let reader = HubReader::open_path(&fixture.write()).unwrap();
    let problems = check(&reader);
    assert!(
        problems
            .iter()
            .any(|problem| problem
                .contains("entry 0: refers to slot 0 of class 1, which is in state 0")),
        "{problems:?}"
    );
    assert!(
        problems.iter().any(|problem| problem
            .contains("entry 1: refers to slot 0 of class 1, as peer 2 recv ring entry 0 does")),
        "{problems:?}"
    );
    fixture.set(
        descriptor_at(PEER, Direction::ToPeer, 0) + desc::PAYLOAD_SLOT,
        &(1_u32 << 29 | 0x4d).to_ne_bytes(),
    );
    let problems = check(&reader);
    assert!(
        problems
            .iter()
            .any(|problem| problem.contains("slot 77 of class 1, which does not exist")),
        "{problems:?}"
    );
}

#[test]
fn what_lies_before_a_cut_is_still_read() {
    let mut fixture = Fixture::new();
    fixture.set_ring(PeerId(0), Direction::ToHost, 7, 3);
    let path = fixture.write();
    let cut = ring_at(PEER, Direction::ToHost) as u64;
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(cut)
        .unwrap();
    let (reader, problem) = HubReader::open_damaged(&path).unwrap();
    assert!(
        matches!(problem, Some(HubProblem::Truncated { part: "rings", .. })),
        "{problem:?}"
    );
    let glance = reader.glance();
    assert_eq!(
        glance
            .ring(PeerId(0), Direction::ToHost)
            .unwrap()
            .indexes
            .len(),
        4
    );
    assert_eq!(glance.ring(PEER, Direction::ToHost), None);
    assert!(
        check(&reader)
            .iter()
            .any(|problem| problem == "peer 2 send ring: is not in the file")
    );
    assert_eq!(HubReader::header_of(&path).unwrap().version(), (1, 0));
    assert_eq!(
        HubReader::header_of(std::path::Path::new("/dev/null")),
        None
    );
}

#[test]
fn the_headers_of_rapace_05_are_read_too() {
    let mut fixture = Fixture::new();
    let slots = fixture::SLOTS;
    for number in 0..class::COUNT {
        let header = classes_at() + number * class::SIZE;
        let extent = slot_at(number, 0) - 64;
        let words = |words: &[u32]| {
            words
                .iter()
                .flat_map(|word| word.to_ne_bytes())
                .collect::<Vec<u8>>()
        };
        // slot_size, slots_per_extent, extent_slot_shift, total_slots, then the free head (first free 1, tag 3).
        fixture.set(header, &words(&[64, slots, slots.ilog2(), slots, 1, 3]));
        let data = 64 + slots * 16;
        fixture.set(
            extent,
            &words(&[number as u32, 0, slots, 64, 64, data, 0, 0]),
        );
        fixture.set(
            slot_at(number, 0) + slot::STATE,
            &slot::STATE_ALLOCATED.to_ne_bytes(),
        );
    }
    let reader = HubReader::open_path(&fixture.write()).unwrap();
    for class in reader.scan_slots().classes {
        assert_eq!(class.problems, Vec::<String>::new());
        let counts = class.observation();
        assert_eq!(
            (counts.total, counts.free, counts.allocated),
            (slots, slots - 1, 1)
        );
    }
    assert_eq!(check(&reader), Vec::<String>::new());
}
