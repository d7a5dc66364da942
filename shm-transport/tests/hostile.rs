//! Files that an enemy wrote: whatever stands in them, there is an error or a value, never a panic or a wild read.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use proptest::prelude::*;
use shm_transport::{Hub, HubConfig, HubError, SlotRef};

const CONFIG: HubConfig = HubConfig {
    max_peers: 2,
    ring_capacity: 8,
};
/// Where the first extent's slots end: beyond it there is only payload.
const END_OF_STRUCTURE: u64 = 256 + 2 * 64 + 4 * (192 + 8 * 64) + 5 * 192 + 64 + 1024 * 16;

/// Everything that can be done with a hub by whoever opened it.
fn use_all(path: &Path) {
    let Ok(hub) = Hub::open(path) else { return };
    for id in 0..=hub.max_peers() {
        let (Ok(send), Ok(recv), Ok(entry)) = (hub.send_ring(id), hub.recv_ring(id), hub.peer(id))
        else {
            continue;
        };
        for ring in [send, recv] {
            let status = ring.ring_status();
            for index in [0, status.tail, status.visible_head, u64::MAX] {
                ring.read_slot(index);
            }
            if let Some(descriptor) = ring.dequeue() {
                let slot = SlotRef::decode(descriptor.payload_slot, descriptor.payload_generation);
                let allocator = hub.allocator();
                let _bytes =
                    allocator.read(slot, descriptor.payload_offset, descriptor.payload_len);
                let _freed = allocator.free(slot);
            }
        }
        let _flags = (entry.flags(), entry.epoch(), entry.last_seen_ns());
    }
    let allocator = hub.allocator();
    for len in [17, 20_000, 1 << 20] {
        if let Ok(slot) = allocator.alloc(len, 1) {
            let _filled = allocator.fill(slot, &vec![7; len]);
            let _sent = allocator.mark_in_flight(slot);
            let _read = allocator.read(slot, 0, len as u32);
            let _freed = allocator.free(slot);
        }
    }
    allocator.slot_status();
    allocator.reclaim_peer(1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_words_in_the_structure(
        words in prop::collection::vec(
            (0..END_OF_STRUCTURE / 4, prop_oneof![any::<u32>(), 0..64_u32, Just(u32::MAX)]),
            1..40,
        )
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hub.shm");
        drop(Hub::create(&path, CONFIG).unwrap());
        let file = File::options().write(true).open(&path).unwrap();
        for (at, value) in words {
            // The magic number stays, or there would be nothing to see.
            if at >= 2 {
                file.write_all_at(&value.to_ne_bytes(), at * 4).unwrap();
            }
        }
        use_all(&path);
    }

    #[test]
    fn any_length(len in 0..200_000_000_u64) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hub.shm");
        let size = {
            let hub = Hub::create(&path, CONFIG).unwrap();
            fs::metadata(hub.path()).unwrap().len()
        };
        File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
        prop_assert_eq!(Hub::open(&path).is_ok(), len >= size);
        use_all(&path);
    }
}

#[test]
fn what_is_no_hub_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.shm");
    assert!(matches!(Hub::open(&path), Err(HubError::File { .. })));
    fs::write(&path, b"").unwrap();
    assert!(Hub::open(&path).is_err());
    fs::write(&path, vec![b'x'; 4096]).unwrap();
    assert!(matches!(Hub::open(&path), Err(HubError::Magic)));
    drop(Hub::create(&path, CONFIG).unwrap());
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&0x0002_0000_u32.to_ne_bytes(), 8)
        .unwrap();
    assert!(matches!(
        Hub::open(&path),
        Err(HubError::Version(0x0002_0000))
    ));
    file.write_all_at(&0x0001_0007_u32.to_ne_bytes(), 8)
        .unwrap();
    assert!(Hub::open(&path).is_ok(), "a later minor version is fine");
}

#[test]
fn a_free_list_that_leads_nowhere_or_round_and_round_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.shm");
    let hub = Hub::create(&path, CONFIG).unwrap();
    let first_meta = END_OF_STRUCTURE - 1024 * 16;
    let file = File::options().write(true).open(&path).unwrap();
    // Slot 0 follows slot 0.
    file.write_all_at(&0_u32.to_ne_bytes(), first_meta + 8)
        .unwrap();
    assert!(hub.allocator().alloc(17, 0).is_ok());
    let second = hub.allocator().alloc(17, 0).unwrap();
    assert_eq!(second.class, 1, "the damaged class is passed over");
}
