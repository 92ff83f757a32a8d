//! Tests that the host's huge pages stay whole as long as no part of them must move alone.

mod common;

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};

use common::Rig;
use hmm_backend::engine::Engine;
use hmm_backend::pages::{Page, PageRange, PageSet, Place};
use hmm_backend::policy::{
    Advice, BlockFault, BlockView, EvictionPolicy, FaultPolicy, Lru, PolicyFactory, Wish,
};

const BLOCK: u32 = 512;
const BLOCKS: u32 = 4;
const PAGES: u32 = BLOCKS * BLOCK;

/// A policy that gives the advice that the test has put here, once.
#[derive(Clone, Default)]
struct Says(Arc<Mutex<Advice>>);

impl FaultPolicy for Says {
    fn advise(&mut self, _: &BlockFault, _: &BlockView<'_>) -> Advice {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl PolicyFactory for Says {
    fn fault_policy(&self) -> Box<dyn FaultPolicy> {
        Box::new(self.clone())
    }
    fn eviction_policy(&self, frames: u32) -> Box<dyn EvictionPolicy> {
        Box::new(Lru::new(frames))
    }
    fn name(&self) -> String {
        "says".into()
    }
}

/// Returns the numbers of the host's huge pages in guest memory, and elsewhere in this process: in device memory.
fn places(rig: &Rig) -> (u64, u64) {
    let (base, len) = rig.backend.host_memory();
    let guest = base as u64..base as u64 + len;
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut in_guest, mut kib) = (false, [0, 0]);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap();
        if let Some((start, _)) = first.split_once('-') {
            in_guest = guest.contains(&u64::from_str_radix(start, 16).unwrap());
        } else if first == "AnonHugePages:" {
            kib[usize::from(!in_guest)] += words.next().unwrap().parse::<u64>().unwrap();
        }
    }
    (kib[0] / 2048, kib[1] / 2048)
}

#[test]
fn a_huge_page_is_split_only_if_a_part_of_it_must_move() {
    let policy = Says::default();
    let say = |advice| *policy.0.lock().unwrap() = advice;
    let whole = || Advice {
        prefetch: PageSet::from_range(0..BLOCK as usize),
        ..Advice::default()
    };
    let rig = Rig::with(
        PAGES,
        Engine::Remap,
        "on-demand",
        |config| {
            config.fill_blocks = true;
            config.policy = Arc::new(policy.clone());
        },
        1,
    );
    let mut device = rig.device(PAGES);
    for page in 0..PAGES {
        rig.cpu(page, 1).store(u64::from(page), SeqCst);
    }
    if places(&rig) != (u64::from(BLOCKS), 0) {
        eprintln!(
            "skipped: the host has no huge pages now: {:?}",
            places(&rig)
        );
        return;
    }
    let all = rig.range(0..PAGES);
    let there = |device| (u64::from(BLOCKS) - device, device);
    // Requests move whole blocks.
    rig.backend.migrate_to_device(device.id, all).unwrap();
    assert_eq!(places(&rig), there(4));
    rig.backend.migrate_to_system(all).unwrap();
    assert_eq!(places(&rig), there(0));
    // A device reaches a page in place: nothing moves.
    say(Advice {
        stay: true,
        ..Advice::default()
    });
    assert_eq!(device.read(700, 1), Ok(700));
    assert_eq!(places(&rig), there(0));
    // A fault of the device, and one of a CPU, whose policy wants the whole block.
    say(whole());
    assert_eq!(device.read(10, 1), Ok(10));
    assert_eq!(places(&rig), there(1));
    say(whole());
    assert_eq!(rig.cpu(20, 1).load(SeqCst), 20);
    rig.backend.settle(all).unwrap();
    assert_eq!(places(&rig), there(0));
    // A wish for two blocks comes with a fault on a third one, whose page moves alone.
    let wish = |to| Advice {
        migrate: vec![Wish {
            pages: PageRange::new(Page(0), Page(2 * BLOCK)),
            to,
        }],
        ..Advice::default()
    };
    let moved = |page: u32| rig.on_device(page..page + 1).len() == 1;
    say(wish(Place::Device(device.id)));
    assert_eq!(device.read(3 * BLOCK + 5, 1), Ok(u64::from(3 * BLOCK + 5)));
    rig.wait_for(|_| moved(0) && moved(BLOCK) && moved(2 * BLOCK - 1));
    assert_eq!(places(&rig), (1, 2), "the third block is in parts");
    say(wish(Place::System));
    assert_eq!(
        rig.cpu(3 * BLOCK + 5, 1).load(SeqCst),
        u64::from(3 * BLOCK + 5)
    );
    rig.wait_for(|_| !moved(0) && !moved(BLOCK) && !moved(2 * BLOCK - 1));
    assert_eq!(places(&rig), (3, 0));
    for page in 0..PAGES {
        assert_eq!(rig.cpu(page, 1).load(SeqCst), u64::from(page));
    }
    device.driver.assert_clean();
}
