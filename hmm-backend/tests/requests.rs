//! Operations on request that take long: a device's memory that changes its size, and what is cancelled on the way.

mod common;

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;

use common::{Device, Rig, both_engines};
use hmm_backend::driver::FaultError;
use hmm_backend::pages::{PAGE_SIZE, Place};
use hmm_backend::{Error, Progress};

const POLICY: &str = "on-demand+fifo+timeslice:min=0us";

fn resize(rig: &Rig, device: &Device, pages: u32) -> Result<(), Error> {
    let bytes = u64::from(pages) * PAGE_SIZE;
    rig.backend.resize(device.id, bytes, &Progress::default())
}

/// Returns the capacity and the frames in use.
fn usage(rig: &Rig, device: &Device) -> (u32, u32) {
    let usage = rig.backend.device_usage(device.id).unwrap();
    (usage.capacity, usage.used)
}

#[test]
fn a_memory_shrinks_in_the_policys_order_and_grows_again() {
    both_engines(|engine| {
        let rig = Rig::new(2048, engine, POLICY);
        let mut device = rig.device(2000);
        for page in 0..1600 {
            device.write(page, 0, u64::from(page)).unwrap();
        }
        resize(&rig, &device, 100).unwrap();
        assert_eq!(usage(&rig, &device), (100, 100));
        // The oldest have left.
        assert_eq!(rig.on_device(0..2048), (1500..1600).collect());
        for page in 0..1600 {
            assert_eq!(device.read(page, 0), Ok(page.into()));
            let (capacity, used) = usage(&rig, &device);
            assert!(capacity == 100 && used <= 100, "{used}");
        }
        let range = rig.range(0..1600);
        rig.backend.migrate_to_device(device.id, range).unwrap();
        assert!(usage(&rig, &device).1 <= 100);
        // Room comes back at once.
        resize(&rig, &device, 2000).unwrap();
        rig.backend.migrate_to_device(device.id, range).unwrap();
        assert_eq!(usage(&rig, &device), (2000, 1600));
        for pages in [0, 2001] {
            let error = resize(&rig, &device, pages).unwrap_err();
            assert!(matches!(error, Error::BadSize { .. }), "{error}");
            assert!(error.to_string().contains("8192000"), "{error}");
        }
        assert_eq!(usage(&rig, &device).0, 2000);
        for page in 0..1600 {
            assert_eq!(rig.cpu(page, 0).load(SeqCst), u64::from(page));
        }
        device.driver.assert_clean();
    });
}

#[test]
fn pages_that_cannot_leave_keep_the_size() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, POLICY);
        let mut device = rig.device(64);
        for page in 0..64 {
            device.write(page, 0, u64::from(page)).unwrap();
        }
        device.faults.lock().unwrap().to_ram = vec![FaultError::Retry; 10_000];
        let error = resize(&rig, &device, 10).unwrap_err();
        assert!(matches!(error, Error::Resize { left: 54, .. }), "{error}");
        assert_eq!(usage(&rig, &device), (64, 64));
        device.faults.lock().unwrap().to_ram.clear();
        resize(&rig, &device, 10).unwrap();
        assert_eq!(usage(&rig, &device), (10, 10));
        for page in 0..64 {
            assert_eq!(rig.cpu(page, 0).load(SeqCst), u64::from(page));
        }
        device.driver.assert_clean();
    });
}

#[test]
fn what_is_cancelled_ends_on_the_way_with_all_pages_whole() {
    both_engines(|engine| {
        const PAGES: u32 = 5 * 4096;
        let rig = Rig::new(PAGES, engine, POLICY);
        // More than pages: nothing is evicted.
        let mut device = rig.device(2 * PAGES);
        let all = rig.range(0..PAGES);
        let cancelled = || {
            let progress = Progress::default();
            progress.cancel();
            progress
        };
        for page in 0..PAGES {
            rig.cpu(page, 0).store(page.into(), SeqCst);
        }
        let ended = |result: Result<u64, Error>, progress: &Progress| match result {
            Err(Error::Cancelled { done, total }) => {
                assert_eq!((done, total), (progress.done(), progress.total()));
                (done, total)
            }
            other => panic!("{other:?}"),
        };
        let on_device = || rig.on_device(0..PAGES).len() as u32;

        let progress = cancelled();
        let to_device = rig
            .backend
            .migrate(Place::Device(device.id), all, &progress);
        let (done, total) = ended(to_device, &progress);
        assert!(done > 0 && done < total && total == PAGES);
        assert_eq!(on_device(), done);
        // Without pages that are left there is nothing to cancel.
        let part = rig.range(0..512);
        let done = rig.backend.migrate(Place::System, part, &cancelled());
        assert_eq!(done.unwrap(), 512);

        rig.backend.migrate_to_device(device.id, all).unwrap();
        let progress = cancelled();
        let to_system = rig.backend.migrate(Place::System, all, &progress);
        let (done, total) = ended(to_system, &progress);
        assert_eq!(on_device(), total - done);

        rig.backend.migrate_to_device(device.id, all).unwrap();
        // In large folios, 64 at a time would be all of them.
        for page in 0..PAGES / 2 {
            rig.cpu(page, 0).load(SeqCst);
            device.read(page, 0).unwrap();
        }
        // A frame may return to the pool after the CPU that waited for its page has gone on.
        let there = on_device();
        rig.wait_for(|_| usage(&rig, &device).1 == there);
        let progress = cancelled();
        let detached = rig.backend.detach_followed(device.id, &progress);
        let (done, total) = ended(detached.map(|()| 0), &progress);
        assert_eq!((total, on_device()), (there, total - done));
        // It is attached and works.
        assert!(rig.backend.device_usage(device.id).unwrap().attached);
        assert_eq!(device.read(3, 0), Ok(3));
        assert!(rig.on_device(3..4).contains(&3));

        let progress = cancelled();
        let resized = rig.backend.resize(device.id, 4096, &progress);
        let (done, _) = ended(resized.map(|()| 0), &progress);
        let (capacity, used) = usage(&rig, &device);
        assert!(done > 0 && capacity == 2 * PAGES);
        assert_eq!(used - 1, progress.total() - done);
        for page in 0..PAGES {
            assert_eq!(rig.cpu(page, 0).load(SeqCst), u64::from(page));
        }
        rig.backend.detach(device.id).unwrap();
        device.driver.assert_clean();
    });
}

#[test]
fn nothing_is_lost_while_a_memory_changes_its_size() {
    both_engines(|engine| {
        const PAGES: u32 = 600;
        let rig = Rig::new(1024, engine, "density+lru+timeslice:min=0us");
        let mut devices = [rig.device(500), rig.coherent_device(300)];
        let ids = devices.each_ref().map(|device| device.id);
        let drivers = devices.each_ref().map(|device| device.driver.clone());
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for (n, device) in devices.iter_mut().enumerate() {
                let (rig, stop) = (&rig, &stop);
                scope.spawn(move || {
                    for _ in 0..6 {
                        for page in 0..PAGES {
                            device.add(page, n, 1).unwrap();
                            rig.cpu(page * 7 % PAGES, 2 + n).fetch_add(1, SeqCst);
                        }
                    }
                    stop.store(true, SeqCst);
                });
            }
            let sizes = [500, 1, 64, 300, 5, 20];
            for (n, size) in sizes.iter().cycle().enumerate() {
                if stop.load(SeqCst) && n > 20 {
                    break;
                }
                let id = ids[n % 2];
                let bytes = PAGE_SIZE * size.min(&300);
                match rig.backend.resize(id, bytes, &Progress::default()) {
                    Ok(()) => {
                        let usage = rig.backend.device_usage(id).unwrap();
                        assert!(usage.used <= usage.capacity, "{usage:?}");
                    }
                    // Its pages were in motion for a second.
                    Err(Error::Resize { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        for page in 0..PAGES {
            for word in 0..4 {
                assert_eq!(rig.cpu(page, word).load(SeqCst), 6, "{page} {word}");
            }
        }
        for driver in drivers {
            driver.assert_clean();
        }
    });
}
