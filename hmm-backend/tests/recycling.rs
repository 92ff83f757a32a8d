//! Tests engine `copy` with recycled pages: contents arrive, the memory is bounded, and former contents are
//! never seen.

mod common;

use std::sync::atomic::Ordering::SeqCst;

use common::{Device, Rig};
use hmm_backend::engine::Engine;
use hmm_backend::pages::{PAGE_SIZE, PageRange};

const POLICY: &str = "on-demand+timeslice:min=0us";

fn rig(pages: u32, recycled: u64) -> Rig {
    Rig::with(pages, Engine::Copy, POLICY, |c| c.recycled = recycled, 1)
}

fn fill(rig: &Rig, pages: std::ops::Range<u32>, value: u64) {
    for page in pages {
        for word in 0..512 {
            rig.cpu(page, word).store(value + u64::from(page), SeqCst);
        }
    }
}

fn to_device(rig: &Rig, device: &Device, range: PageRange) -> u64 {
    rig.backend.migrate_to_device(device.id, range).unwrap()
}

/// Every word arrives, both ways and repeatedly, whether more pages migrate than are recycled, fewer, or none
/// is recycled.
#[test]
fn contents_survive_any_amount_of_recycling() {
    for recycled in [0, 1, 3, 64, 512, 2048] {
        let rig = rig(1024, recycled * PAGE_SIZE);
        let device = rig.device(1024);
        fill(&rig, 0..1024, 1 << 32);
        for (start, end) in [(0, 1024), (100, 613), (5, 6), (0, 1024), (1, 1000)] {
            let range = rig.range(start..end);
            assert_eq!(to_device(&rig, &device, range), u64::from(range.len()));
            assert_eq!(rig.backend.resident_bytes(range).unwrap(), 0);
            let back = rig.backend.migrate_to_system(range).unwrap();
            assert_eq!(back, u64::from(range.len()));
            for page in 0..1024 {
                for word in [0, 1, 255, 511] {
                    let value = rig.cpu(page, word).load(SeqCst);
                    assert_eq!(
                        value,
                        (1 << 32) + u64::from(page),
                        "page {page} word {word}"
                    );
                }
            }
        }
        device.driver.assert_clean();
    }
}

/// A recycled page held another page's contents: none of them may be seen in the page that it becomes.
#[test]
fn former_contents_are_never_seen() {
    let rig = rig(1024, 512 * PAGE_SIZE);
    let mut device = rig.device(1024);
    // Every word holds a secret; the pages migrate to the device and leave used pages behind.
    fill(&rig, 0..512, 0xdead_0000_0000);
    assert_eq!(to_device(&rig, &device, rig.range(0..512)), 512);
    // Pages that were first touched on the device migrate into the used pages.
    for page in 512..1024 {
        device.write(page, 7, 1).unwrap();
    }
    let born = rig.range(512..1024);
    assert_eq!(rig.backend.migrate_to_system(born).unwrap(), 512);
    for page in 512..1024 {
        for word in 0..512 {
            let value = rig.cpu(page, word).load(SeqCst);
            assert_eq!(value, u64::from(word == 7), "page {page} word {word}");
        }
    }
    // Freed pages read as zeros, whatever has been recycled, and their memory is returned to the host.
    let all = rig.range(0..1024);
    assert_eq!(rig.backend.guest_freed(all).unwrap(), 1024);
    assert_eq!(rig.backend.resident_bytes(all).unwrap(), 0);
    for page in 0..1024 {
        for word in [0, 7, 511] {
            assert_eq!(rig.cpu(page, word).load(SeqCst), 0);
        }
    }
}

/// A migration that fails after the copy restores all contents, also from pages that were recycled meanwhile.
#[test]
fn rollback_restores_contents() {
    for recycled in [0, 1, 512] {
        let rig = rig(512, recycled * PAGE_SIZE);
        let device = rig.device(512);
        fill(&rig, 0..512, 7);
        device.faults.lock().unwrap().to_device_after_copy = 1;
        assert_eq!(to_device(&rig, &device, rig.range(0..512)), 0);
        assert!(rig.on_device(0..512).is_empty());
        for page in 0..512 {
            assert_eq!(rig.cpu(page, 511).load(SeqCst), 7 + u64::from(page));
        }
        assert_eq!(device.driver.live(), 0);
        device.driver.assert_clean();
    }
}

/// The memory kept for recycling, as the kernel counts it, stays within the configured limit.
#[test]
fn recycled_memory_is_bounded() {
    // A size that no other mapping has, by which this test finds the area.
    const ALLOWED: u64 = 101 * PAGE_SIZE;
    let kept = || {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut mine, mut rss) = (false, 0);
        for line in smaps.lines() {
            let mut fields = line.split_whitespace();
            let (name, value) = (fields.next(), fields.next());
            let bytes = || value.unwrap().parse::<u64>().unwrap() * 1024;
            match name {
                Some("Size:") => mine = bytes() == ALLOWED,
                Some("Rss:") if mine => rss = bytes(),
                Some("VmFlags:") if mine && line.contains(" um") => return Some(rss),
                _ => {}
            }
        }
        None
    };
    let rig = rig(2048, ALLOWED);
    let device = rig.device(2048);
    fill(&rig, 0..2048, 1);
    assert_eq!(kept(), Some(0));
    for _ in 0..3 {
        assert_eq!(to_device(&rig, &device, rig.range(0..2048)), 2048);
        // Some memory is kept, otherwise the test would not check the bound.
        assert!((1..=ALLOWED).contains(&kept().unwrap()));
        assert_eq!(
            rig.backend.migrate_to_system(rig.range(0..2048)).unwrap(),
            2048
        );
        assert!(kept().unwrap() <= ALLOWED);
    }
}
