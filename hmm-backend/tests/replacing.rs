//! Tests that policies can be replaced while CPUs and devices fault.

mod common;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;

use common::{Rig, both_engines};
use hmm_backend::engine::Engine;
use hmm_backend::pages::{Page, PageRange};
use hmm_backend::policy::{PolicyFactory, PolicySpec};

const PAGES: u32 = 2048;
const FRAMES: u32 = 256;

fn policy(spec: &str) -> Arc<dyn PolicyFactory> {
    Arc::new(spec.parse::<PolicySpec>().unwrap())
}

#[test]
fn no_fault_is_lost_and_no_page_forgotten_while_policies_change() {
    const POLICIES: [&str; 6] = [
        "on-demand+lru",
        "density+s3-fifo+timeslice",
        "sequential+clock+thrash",
        "adaptive+lfu",
        "access-counter:threshold=4+fifo",
        "first-touch+lru+timeslice:min=0us",
    ];
    both_engines(|engine| {
        let rig = Rig::with(PAGES, engine, "on-demand", |config| config.shards = 2, 2);
        let mut device = rig.device(FRAMES);
        let done = AtomicBool::new(false);
        let rounds = 20;
        std::thread::scope(|scope| {
            // Each counts in words of its own.
            let device = &mut device;
            let (rig, done) = (&rig, &done);
            let cpu = scope.spawn(move || {
                for round in 0..rounds {
                    for page in (0..PAGES).step_by(7) {
                        assert_eq!(rig.cpu(page, 1).fetch_add(1, SeqCst), round);
                    }
                }
            });
            let accelerator = scope.spawn(move || {
                for round in 0..rounds {
                    for page in (0..PAGES).step_by(3) {
                        assert_eq!(device.add(page, 2, 1).unwrap(), round);
                    }
                }
            });
            let replacing = scope.spawn(move || {
                let mut replaced = 0;
                while !done.load(SeqCst) || replaced < 100 {
                    let spec = POLICIES[replaced % POLICIES.len()];
                    let region = match replaced % 4 {
                        0 => Some(rig.range(512..1024)),
                        2 => Some(rig.range(0..1536)),
                        _ => None,
                    };
                    rig.backend.replace_policy(region, policy(spec)).unwrap();
                    replaced += 1;
                }
                replaced
            });
            cpu.join().unwrap();
            accelerator.join().unwrap();
            done.store(true, SeqCst);
            eprintln!("{} policies", replacing.join().unwrap());
        });
        assert!(rig.fatal.lock().unwrap().is_empty());
        for page in 0..PAGES {
            let cpu = if page % 7 == 0 { rounds } else { 0 };
            let accelerator = if page % 3 == 0 { rounds } else { 0 };
            assert_eq!(rig.cpu(page, 1).load(SeqCst), cpu, "page {page}");
            assert_eq!(rig.cpu(page, 2).load(SeqCst), accelerator, "page {page}");
        }
        device.driver.assert_clean();
    });
}

/// Pages that came under the old policy can be evicted under the new one.
#[test]
fn the_new_policy_evicts_what_came_before_it() {
    let rig = Rig::new(PAGES, Engine::Remap, "on-demand+lru+timeslice:min=0us");
    let mut device = rig.device(FRAMES);
    for page in 0..FRAMES {
        device.write(page, 0, page.into()).unwrap();
    }
    for spec in ["fifo", "s3-fifo", "clock", "lfu", "lru"] {
        let all = format!("on-demand+{spec}+timeslice:min=0us");
        rig.backend.replace_policy(None, policy(&all)).unwrap();
        // All of these come, although device memory was full.
        for page in FRAMES..3 * FRAMES {
            device.write(page, 0, page.into()).unwrap();
            assert!(
                rig.on_device(page..page + 1).contains(&page),
                "{all}: {page}"
            );
        }
        // These two keep what is used again and again, which the new policy takes the old pages for.
        if !["s3-fifo", "lfu"].contains(&spec) {
            assert!(rig.on_device(0..FRAMES).is_empty(), "{all}");
        }
        for page in 0..FRAMES {
            assert_eq!(device.read(page, 0).unwrap(), page.into());
        }
    }
    rig.backend.detach(device.id).unwrap();
    device.driver.assert_clean();
}

#[test]
fn a_region_has_whole_blocks_and_a_policy_for_all_ends_it() {
    let rig = Rig::new(PAGES, Engine::Remap, "on-demand+timeslice:min=0us");
    let mut device = rig.device(FRAMES);
    let wrong = |range: PageRange| rig.backend.replace_policy(Some(range), policy("density"));
    let text = |result: Result<(), hmm_backend::Error>| result.unwrap_err().to_string();
    assert!(text(wrong(rig.range(1..512))).contains("whole blocks of 2 MiB"));
    assert!(text(wrong(PageRange::new(Page(0), Page(9999)))).contains("pages"));
    rig.backend
        .replace_policy(
            Some(rig.range(512..1024)),
            policy("sequential:window=8,min_run=1"),
        )
        .unwrap();
    assert_eq!(
        rig.backend.policy_name(),
        "on-demand+lru+timeslice:min=0us; memory 2 MiB to 4 MiB: sequential:window=8,min_run=1+lru+timeslice"
    );
    // Two faults in a row bring eight more pages in the region, and none elsewhere.
    for page in [3, 4, 5, 603, 604, 605] {
        device.write(page, 0, 1).unwrap();
    }
    let there = |range| rig.on_device(range).len();
    rig.wait_for(|_| there(512..1024) == 10);
    assert_eq!(there(0..512), 3);
    // There is one threshold for the reports on accesses in place: the lowest of all policies.
    let threshold = |device: &mut common::Device| device.mirror().remote_access_threshold();
    assert_eq!(threshold(&mut device), None);
    for (start, end, counter) in [(0, 512, 9), (1024, 1536, 300)] {
        let counter = policy(&format!("access-counter:threshold={counter}"));
        let region = rig.range(start..end);
        rig.backend.replace_policy(Some(region), counter).unwrap();
    }
    assert_eq!(threshold(&mut device), Some(9));
    rig.backend
        .replace_policy(None, policy("on-demand"))
        .unwrap();
    assert_eq!(threshold(&mut device), None);
    assert_eq!(rig.backend.policy_name(), "on-demand+lru+timeslice");
}
