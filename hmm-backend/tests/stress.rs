//! Runs many threads at once on few pages: CPUs, devices, frees, hints and pins race, drivers fail now and
//! then, and no increment may be lost. Seeds are fixed; the schedule is up to the machine.

mod common;

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};

use common::{Device, Rig, both_engines};
use hmm_backend::driver::FaultError;
use hmm_backend::mirror::MirrorError;
use hmm_backend::pages::PageRange;

/// A small random number generator: splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// Pages to whose words the threads add, and whose sum is checked. They are never freed.
const COUNTED: u32 = 1200;
/// Pages behind these that are also freed.
const SCRATCH: u32 = 336;

fn run(engine: hmm_backend::engine::Engine, policy: &str, shards: usize, service_threads: usize) {
    let rig = Rig::with(
        COUNTED + SCRATCH,
        engine,
        policy,
        |c| c.shards = shards,
        service_threads,
    );
    let mut devices: Vec<Device> = vec![rig.device(300), rig.device(64), rig.coherent_device(200)];
    let drivers: Vec<_> = devices.iter().map(|d| d.driver.clone()).collect();
    let faults: Vec<_> = devices.iter().map(|d| d.faults.clone()).collect();
    let ids: Vec<_> = devices.iter().map(|d| d.id).collect();
    let added = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let operations = 4000;
    std::thread::scope(|scope| {
        let (rig, added, stop) = (&rig, &added, &stop);
        let mut workers = Vec::new();
        for cpu in 0..3u64 {
            workers.push(scope.spawn(move || {
                let mut random = Random(cpu);
                for _ in 0..operations {
                    let (page, word) = (
                        random.below(COUNTED.into()) as u32,
                        random.below(512) as usize,
                    );
                    // Touch runs of neighbouring pages, so that policies find a reason to prefetch.
                    for next in 0..random.below(20) as u32 {
                        if page + next < COUNTED {
                            rig.cpu(page + next, word).fetch_add(cpu + 1, SeqCst);
                            added.fetch_add(cpu + 1, SeqCst);
                        }
                    }
                    let scratch = COUNTED + random.below(SCRATCH.into()) as u32;
                    let seen = rig.cpu(scratch, 0).fetch_add(1, SeqCst);
                    assert!(seen < 1 << 40, "scratch page {scratch:#x} holds {seen:#x}");
                }
            }));
        }
        for (n, device) in devices.iter_mut().enumerate() {
            workers.push(scope.spawn(move || {
                let mut random = Random(100 + n as u64);
                for _ in 0..operations / 2 {
                    let (page, word) = (
                        random.below(COUNTED.into()) as u32,
                        random.below(512) as usize,
                    );
                    match random.below(4) {
                        0 => device.add_exclusively(page, word, 1000, || {}),
                        _ => device.add(page, word, 1000).map(drop),
                    }
                    // Another thread has pinned the page: add without exclusive access.
                    .or_else(|error| match error {
                        MirrorError::NotExclusive(_) => device.add(page, word, 1000).map(drop),
                        error => Err(error),
                    })
                    .unwrap();
                    added.fetch_add(1000, SeqCst);
                    let scratch = COUNTED + random.below(SCRATCH.into()) as u32;
                    device.add(scratch, 0, 1).unwrap();
                }
            }));
        }
        // This thread migrates, frees, pins and injects failures until the workers are done.
        scope.spawn(|| {
            let mut random = Random(7);
            let mut rounds = 0;
            // On a busy machine the workers may be done before this thread has run.
            while !stop.load(SeqCst) || rounds < 200 {
                rounds += 1;
                let start = random.below(COUNTED.into()) as u32;
                let len = 1 + random.below(600) as u32;
                let range = rig.range(start..(start + len).min(COUNTED + SCRATCH));
                let device = ids[random.below(3) as usize];
                match random.below(5) {
                    0 => drop(rig.backend.migrate_to_device(device, range).unwrap()),
                    1 => drop(rig.backend.migrate_to_system(range).unwrap()),
                    2 => {
                        let start = random.below(SCRATCH.into()) as u32;
                        let end = (start + 1 + random.below(64) as u32).min(SCRATCH);
                        let freed = rig.range(COUNTED + start..COUNTED + end);
                        rig.backend.guest_freed(freed).unwrap();
                    }
                    3 => {
                        let few = PageRange::with_len(range.start, range.len().min(8));
                        let pinned = rig.backend.pin(few).unwrap();
                        // SAFETY: the byte is inside the pinned range, which is present.
                        unsafe { std::ptr::read_volatile(pinned.host()) };
                    }
                    _ => {
                        let faults = &faults[random.below(3) as usize];
                        let mut faults = faults.lock().unwrap();
                        // Inject only a few failures at a time; another test covers a driver that always fails.
                        if faults.to_ram.is_empty() {
                            faults.to_ram.push(FaultError::Retry);
                            faults.to_device_after_copy = 1;
                            faults.to_ram_after_copy = 1;
                        }
                    }
                }
            }
        });
        for worker in workers {
            worker.join().unwrap();
        }
        stop.store(true, SeqCst);
    });
    for faults in &faults {
        *faults.lock().unwrap() = Default::default();
    }
    let mut sum = 0;
    for page in 0..COUNTED {
        for word in 0..512 {
            sum += rig.cpu(page, word).load(SeqCst);
        }
    }
    assert_eq!(sum, added.load(SeqCst), "increments were lost or doubled");
    let all = rig.range(0..COUNTED + SCRATCH);
    // A prefetch for a fault before the free may still fill pages after it, so free again until no page has
    // memory.
    rig.wait_for(|_| {
        rig.backend.guest_freed(all).unwrap();
        rig.backend.resident_bytes(all).unwrap() == 0
    });
    // A service thread calls the driver's `page_free` a moment after it has unlocked the page.
    rig.wait_for(|_| drivers.iter().all(|driver| driver.live() == 0));
    rig.wait_for(|s| s.page_free_calls == drivers.iter().map(|d| d.freed()).sum());
    for driver in &drivers {
        driver.assert_clean();
    }
    assert!(rig.fatal.lock().unwrap().is_empty());
    let stats = rig.backend.stats();
    eprintln!("{stats:#?}");
    assert!(stats.counters.folio_splits > 0 && stats.counters.folios_rolled_back > 0);
    assert!(stats.counters.exclusive_grants > 0);
    assert!(stats.device_pages_peak <= 564);
}

#[test]
fn nothing_is_lost_under_density() {
    both_engines(|engine| run(engine, "density", 1, 1));
}

#[test]
fn nothing_is_lost_on_demand_without_minimum_residency() {
    both_engines(|engine| run(engine, "on-demand+timeslice:min=0us", 1, 2));
}

#[test]
fn nothing_is_lost_with_several_userfaultfds_and_threads() {
    both_engines(|engine| run(engine, "density+timeslice:min=20us", 3, 3));
}

/// The policy has wishes, takes translations away from devices, and pins pages.
#[test]
fn nothing_is_lost_under_a_policy_with_wishes() {
    const POLICY: &str = "sequential:min_run=1,window=16+s3-fifo+timeslice:min=0us\
                          +thrash:threshold=1,lapse=500ms,nap=20us,pin=1ms,pin_threshold=1";
    both_engines(|engine| run(engine, POLICY, 2, 2));
}
