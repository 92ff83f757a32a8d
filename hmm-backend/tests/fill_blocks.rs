//! Tests that a block is filled as a whole when a CPU first touches it.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use common::{Rig, both_engines};
use hmm_backend::engine::Engine;
use hmm_backend::pages::{Page, PageRange, Permission};
use hmm_backend::residency::Residency;
use hmm_backend::testing::{KernelAnswers, KernelCall, MadeUpAnswer};

const POLICY: &str = "on-demand+timeslice:min=0us";
const PAGES: u32 = 2048;
const BLOCK: u32 = 512;

fn rig(engine: Engine) -> Rig {
    Rig::with(PAGES, engine, POLICY, |c| c.fill_blocks = true, 1)
}

/// Returns the pages that CPUs reach without a fault.
fn present(rig: &Rig) -> Vec<u32> {
    rig.backend.settle(rig.range(0..PAGES)).unwrap();
    let is_there = |page: &u32| {
        let word = rig.backend.word(Page(*page)).unwrap();
        word.residency() == Residency::System
    };
    (0..PAGES).filter(is_there).collect()
}

fn pages(range: std::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

#[test]
fn the_first_touch_fills_a_block_and_no_other() {
    both_engines(|engine| {
        let rig = rig(engine);
        // A read fills the block, too, because the next accesses are not known.
        assert_eq!(rig.cpu(700, 3).load(SeqCst), 0);
        assert_eq!(present(&rig), pages(BLOCK..2 * BLOCK));
        assert!((BLOCK..2 * BLOCK).all(|page| rig.cpu(page, 511).fetch_add(1, SeqCst) == 0));
        rig.wait_for(|stats| stats.cpu_faults == 1 && stats.first_touch_faults == 1);
        assert_eq!(rig.cpu(0, 0).fetch_add(1, SeqCst), 0);
        assert_eq!(present(&rig), pages(0..2 * BLOCK));
        rig.wait_for(|stats| stats.cpu_faults == 2);
    });
}

#[test]
fn a_block_that_is_in_use_is_filled_page_by_page() {
    both_engines(|engine| {
        let rig = rig(engine);
        let mut device = rig.device(64);
        device.write(5, 0, 1).unwrap();
        rig.cpu(6, 0).store(2, SeqCst);
        assert_eq!(present(&rig), [6]);
        // A read-only page is not filled either: it may be read-only because it must stay without contents.
        rig.backend
            .set_permission(rig.range(600..601), Permission::ReadOnly)
            .unwrap();
        rig.cpu(601, 0).store(3, SeqCst);
        assert_eq!(present(&rig), [6, 601]);
        // A block that has been freed as a whole is blank again, and reads as zeros.
        rig.backend.guest_freed(rig.range(0..BLOCK)).unwrap();
        assert_eq!(present(&rig), [601]);
        assert_eq!(rig.cpu(5, 0).load(SeqCst), 0);
        assert_eq!(present(&rig), [&pages(0..BLOCK)[..], &[601]].concat());
        assert!((0..BLOCK).all(|page| rig.cpu(page, 0).load(SeqCst) == 0));
        device.driver.assert_clean();
    });
}

/// Parts of huge pages migrate to the device and back, between parts that stay.
#[test]
fn contents_survive_migrations_of_parts() {
    both_engines(|engine| {
        let rig = rig(engine);
        let device = rig.device(PAGES);
        let value = |page: u32, word: usize| u64::from(page) << 32 | word as u64;
        let words = [0, 1, 255, 511];
        for page in 0..PAGES {
            for word in words {
                rig.cpu(page, word).store(value(page, word), SeqCst);
            }
        }
        for (start, end) in [(7, 8), (100, 613), (512, 1024), (0, PAGES), (1, 2000)] {
            let range = rig.range(start..end);
            let there = rig.backend.migrate_to_device(device.id, range).unwrap();
            assert_eq!(there, u64::from(end - start));
            assert_eq!(rig.backend.resident_bytes(range).unwrap(), 0);
            let back = rig.backend.migrate_to_system(range).unwrap();
            assert_eq!(back, u64::from(end - start));
            for page in 0..PAGES {
                for word in words {
                    let found = rig.cpu(page, word).load(SeqCst);
                    assert_eq!(found, value(page, word), "page {page} word {word}");
                }
            }
        }
        device.driver.assert_clean();
    });
}

/// Returns the bytes of guest memory that are in huge pages of the host.
fn huge(rig: &Rig) -> u64 {
    let (base, len) = rig.backend.host_memory();
    let (start, end) = (base as u64, base as u64 + len);
    let mut inside = false;
    let mut sum = 0;
    for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        let mut fields = line.split_whitespace();
        let (first, second) = (fields.next().unwrap(), fields.next());
        if let Some((from, to)) = first.split_once('-') {
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            inside = number(from) >= start && number(to) <= end;
        } else if inside && first == "AnonHugePages:" {
            sum += second.unwrap().parse::<u64>().unwrap() << 10;
        }
    }
    sum
}

#[test]
fn engine_remap_fills_with_huge_pages() {
    let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    if setting.is_ok_and(|setting| setting.contains("[never]")) {
        eprintln!("skipped: transparent huge pages are disabled on this host");
        return;
    }
    let rig = rig(Engine::Remap);
    for block in 0..PAGES / BLOCK {
        rig.cpu(block * BLOCK + 9, 0).store(1, SeqCst);
    }
    // A host with fragmented memory may have no huge page for some of the blocks.
    assert!(huge(&rig) > 0);
}

/// Makes each fill of one page fail.
struct NoMemoryFor(Page);

impl KernelAnswers for NoMemoryFor {
    fn answer(&self, call: KernelCall, pages: PageRange) -> Option<MadeUpAnswer> {
        let hit = call == KernelCall::Fill && pages.contains(self.0);
        hit.then(|| MadeUpAnswer {
            done: self.0.0 - pages.start.0,
            errno: libc::EFAULT,
            ..MadeUpAnswer::default()
        })
    }
}

#[test]
fn nobody_suffers_from_a_page_that_nobody_touched() {
    both_engines(|engine| {
        let change = |config: &mut hmm_backend::BackendConfig| {
            config.fill_blocks = true;
            config.kernel = Some(Arc::new(NoMemoryFor(Page(40))));
        };
        let rig = Rig::with(PAGES, engine, POLICY, change, 1);
        // A pin is the VMM's own access: it must not fail because of page 40.
        drop(rig.backend.pin(rig.range(30..31)).unwrap());
        let all_but_one = (0..BLOCK).filter(|page| *page != 40).collect::<Vec<_>>();
        assert_eq!(present(&rig), all_but_one);
        assert!(rig.fatal.lock().unwrap().is_empty());
    });
}
