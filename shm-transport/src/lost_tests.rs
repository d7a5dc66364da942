//! Every step of taking a slot and of giving it back, as the last one of a process that dies there.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::alloc::{HubAllocator, SlotRef};
use crate::claim::Claim;
use crate::host::{HubHost, HubHostPeerTransport};
use crate::hub::{Hub, HubConfig};
use crate::layout::{SlotFields, slot};
use crate::peer::PeerEntry;
use crate::stack::FreeStack;

struct Scene {
    host: Arc<HubHost>,
    victim: HubHostPeerTransport,
    bystander: HubHostPeerTransport,
    _folder: tempfile::TempDir,
}

fn scene() -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let host = HubHost::create(folder.path().join("hub.shm"), HubConfig::default()).unwrap();
    let (victim, _) = host.add_peer("victim").unwrap();
    let (bystander, _) = host.add_peer("bystander").unwrap();
    // Both say what they have in their hands.
    victim.peer().claim_nothing();
    bystander.peer().claim_nothing();
    Scene {
        host,
        victim,
        bystander,
        _folder: folder,
    }
}

/// The steps of an allocation (0 to 3) or of a release (4 to 8), the last of which is `last`.
fn die_after(allocator: &HubAllocator, entry: &PeerEntry, last: usize) {
    let (head, words, link) = allocator.raw(0, 0).unwrap();
    let stack = FreeStack {
        head,
        next: |index| (index == 0).then_some(link),
    };
    let steps: [&dyn Fn(); 9] = [
        &|| assert_eq!(stack.pop(|slot| entry.claim_slot(slot)), Ok(Some(0))),
        &|| words.state.store(slot::STATE_ALLOCATED, Ordering::Release),
        &|| words.owner.store(entry.id().into(), Ordering::Release),
        &|| {
            words.generation.fetch_add(1, Ordering::Release);
            entry.claim_nothing();
        },
        &|| entry.claim_slot(0),
        &|| words.state.store(slot::STATE_ALLOCATED, Ordering::Release),
        &|| words.owner.store(slot::OWNER_NONE, Ordering::Release),
        &|| words.state.store(slot::STATE_FREE, Ordering::Release),
        &|| assert_eq!(stack.push(0), Ok(false)),
    ];
    for step in &steps[..=last] {
        step();
    }
}

/// All slots of the class can be had again, each once.
fn all_can_be_had(allocator: &HubAllocator) {
    let all = allocator.slot_status().classes[0].total;
    let mut slots: Vec<SlotRef> = Vec::new();
    while let Ok(slot) = allocator.alloc(1024, 77) {
        if slot.class > 0 {
            allocator.free_unsent(slot).unwrap();
            break;
        }
        slots.push(slot);
    }
    slots.sort_unstable_by_key(|slot| slot.index);
    slots.dedup_by_key(|slot| slot.index);
    assert_eq!(slots.len(), all as usize);
}

/// The same without a host, so that Miri can look.
#[test]
fn wherever_a_peer_dies_the_search_finds_its_slot_once() {
    for last in 0..9 {
        let hub = Hub::in_memory(HubConfig::default(), SlotFields::STANDARD).unwrap();
        let (allocator, entry) = (hub.allocator(), hub.peer(0).unwrap());
        entry.claim_nothing();
        die_after(allocator, &entry, last);
        let living = |slot| entry.claim() == Claim::Slot(slot);
        assert_eq!(allocator.recover_lost(living), 0, "alive at step {last}");
        let freed = allocator.reclaim_peer(0) + allocator.recover_lost(|_| false);
        assert_eq!(freed, usize::from(last < 8), "died after step {last}");
        all_can_be_had(allocator);
    }
}

#[tokio::test]
#[cfg_attr(miri, ignore = "Miri maps no file and has no doorbells")]
async fn wherever_a_peer_dies_its_slot_comes_back_once() {
    for last in 0..9 {
        let scene = scene();
        die_after(scene.host.hub().allocator(), scene.victim.peer(), last);
        assert_eq!(
            scene.host.recover_slots(),
            0,
            "it may still live at step {last}"
        );
        let freed = scene.victim.mark_dead().await;
        assert_eq!(freed, usize::from(last < 8), "died after step {last}");
        all_can_be_had(scene.host.hub().allocator());
    }
}

#[tokio::test]
#[cfg_attr(miri, ignore = "Miri maps no file and has no doorbells")]
async fn what_a_living_peer_has_in_its_hands_is_left_alone() {
    let scene = scene();
    die_after(scene.host.hub().allocator(), scene.victim.peer(), 0);
    // The same slot, but in the hands of one that lives.
    scene.bystander.peer().claim_slot(0);
    assert_eq!(scene.victim.mark_dead().await, 0);
    scene.bystander.peer().claim_nothing();
    assert_eq!(scene.host.recover_slots(), 1);
    all_can_be_had(scene.host.hub().allocator());
}

#[tokio::test]
#[cfg_attr(miri, ignore = "Miri maps no file and has no doorbells")]
async fn beside_a_peer_that_does_not_say_it_waits_for_a_sleep() {
    let folder = tempfile::tempdir().unwrap();
    let host = HubHost::create(folder.path().join("hub.shm"), HubConfig::default()).unwrap();
    let (victim, _) = host.add_peer("victim").unwrap();
    let (foreign, _) = host.add_peer("foreign").unwrap();
    let mut busy = std::process::Command::new("sh")
        .args(["-c", "while :; do :; done"])
        .spawn()
        .unwrap();
    foreign.watch(busy.id()).unwrap();
    let allocator = host.hub().allocator();
    let (head, _, link) = allocator.raw(0, 0).unwrap();
    let stack = FreeStack {
        head,
        next: |index| (index == 0).then_some(link),
    };
    stack.pop(|_| ()).unwrap();
    assert_eq!(victim.mark_dead().await, 0, "the other runs");
    busy.kill().unwrap();
    busy.wait().unwrap();
    assert_eq!(host.recover_slots(), 1);
    all_can_be_had(host.hub().allocator());
}
