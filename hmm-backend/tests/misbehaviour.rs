//! Tests drivers and users that do the unexpected: the backend stays correct, and no CPU is left asleep.

mod common;

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Rig, both_engines};
use hmm_backend::Error;
use hmm_backend::driver::{
    DeviceFolio, Driver, FaultError, Finalized, MigrateError, ToDevice, ToSystem,
};
use hmm_backend::engine::Engine;
use hmm_backend::mirror::MirrorError;
use hmm_backend::observe::Cause;
use hmm_backend::pages::{Page, Permission};

const PLAIN: &str = "on-demand+timeslice:min=0us";
/// Longer than any step of these tests takes; after it, a test fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(30);

/// A driver whose first split waits until the test lets it continue.
struct SlowSplit {
    splitting: mpsc::Sender<()>,
    go_on: Mutex<mpsc::Receiver<()>>,
    first: AtomicBool,
}

impl Driver for SlowSplit {
    fn page_free(&self, _: DeviceFolio) {}

    fn folio_split(&self, folio: DeviceFolio) -> u64 {
        if self.first.swap(false, SeqCst) {
            self.splitting.send(()).unwrap();
            self.go_on.lock().unwrap().recv().unwrap();
        }
        folio.cookie
    }
}

#[test]
fn cpus_that_wait_for_the_other_half_of_a_folio_are_woken() {
    both_engines(|engine| {
        let rig = Rig::with(512, engine, PLAIN, |_| {}, 2);
        let (splitting, split) = mpsc::channel();
        let (go_on, wait) = mpsc::channel();
        let driver = Arc::new(SlowSplit {
            splitting,
            go_on: Mutex::new(wait),
            first: AtomicBool::new(true),
        });
        let id = rig.backend.attach(512 * 4096, driver).unwrap();
        for page in 0..512 {
            rig.cpu(page, 0).store(u64::from(page) + 1, SeqCst);
        }
        assert_eq!(
            rig.backend
                .migrate_to_device(id, rig.range(0..512))
                .unwrap(),
            512
        );
        let (done, finished) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| assert_eq!(rig.cpu(5, 0).load(SeqCst), 6));
            split.recv_timeout(PATIENCE).unwrap();
            scope.spawn(|| {
                assert_eq!(rig.cpu(300, 0).load(SeqCst), 301);
                done.send(()).unwrap();
            });
            // The second CPU finds the folio locked.
            rig.wait_for(|s| s.counters.faults_lost == 1);
            go_on.send(()).unwrap();
            let woken = finished.recv_timeout(PATIENCE);
            // Bring the page back in any case, so that the sleeping CPU wakes and the test ends.
            rig.backend.migrate_to_system(rig.range(0..512)).unwrap();
            assert!(
                woken.is_ok(),
                "the CPU that touched page 300 sleeps for ever"
            );
        });
    });
}

#[test]
fn a_service_that_ends_leaves_no_cpu_waiting() {
    let mut rig = Rig::new(512, Engine::Remap, "on-demand+timeslice:min=1s");
    let mut device = rig.device(64);
    device.write(3, 0, 77).unwrap();
    let cell = rig.cpu(3, 0).as_ptr() as usize;
    let (done, finished) = mpsc::channel();
    let cpu = std::thread::spawn(move || {
        // SAFETY: the word is in managed memory, which `rig` keeps alive until this thread has been joined.
        let value = unsafe { AtomicU64::from_ptr(cell as *mut u64) }.load(SeqCst);
        done.send(value).unwrap();
    });
    rig.wait_for(|s| s.counters.faults_deferred == 1);
    rig.stop_service();
    assert_eq!(finished.recv_timeout(PATIENCE), Ok(77));
    cpu.join().unwrap();
}

#[test]
fn pinned_pages_cannot_fail() {
    let rig = Rig::new(512, Engine::Remap, PLAIN);
    let pinned = rig.backend.pin(rig.range(7..8)).unwrap();
    assert!(matches!(
        rig.backend.memory_failure(Page(7)),
        Err(Error::Pinned(Page(7)))
    ));
    drop(pinned);
    assert_eq!(rig.backend.word(Page(7)).unwrap().pins(), 0);
    rig.backend.memory_failure(Page(7)).unwrap();
}

#[test]
fn a_forked_child_does_not_hold_pages_back() {
    let rig = Rig::new(512, Engine::Remap, PLAIN);
    let mut device = rig.device(64);
    device.write(3, 0, 77).unwrap();
    // SAFETY: the child calls nothing but `_exit`; the parent waits for it.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            libc::_exit(0);
        }
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    assert_eq!(rig.cpu(3, 0).load(SeqCst), 77);
}

/// A driver that commits and then returns an error.
struct LateErrors;

impl Driver for LateErrors {
    fn page_free(&self, _: DeviceFolio) {}

    fn migrate_to_device(&self, migration: ToDevice<'_>) -> Result<Finalized, MigrateError> {
        drop(migration.copy()?.commit());
        Err(MigrateError::Device("late".into()))
    }

    fn migrate_to_ram(&self, migration: ToSystem<'_>) -> Result<Finalized, FaultError> {
        drop(migration.copy()?.commit()?);
        Err(FaultError::Fatal("late".into()))
    }
}

#[test]
fn an_error_after_the_commit_changes_nothing() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, PLAIN);
        let id = rig.backend.attach(64 * 4096, Arc::new(LateErrors)).unwrap();
        rig.cpu(3, 0).store(5, SeqCst);
        rig.backend.migrate_to_device(id, rig.range(3..4)).unwrap();
        assert_eq!(rig.on_device(0..512), [3].into());
        assert_eq!(rig.cpu(3, 0).load(SeqCst), 5);
        rig.wait_for(|s| (s.pages_to_device(), s.pages_to_system()) == (1, 1));
        assert!(rig.fatal.lock().unwrap().is_empty());
    });
}

/// A driver that returns success without moving any page, the first few times.
struct Lazy(AtomicU32);

impl Driver for Lazy {
    fn page_free(&self, _: DeviceFolio) {}

    fn migrate_to_ram(&self, mut migration: ToSystem<'_>) -> Result<Finalized, FaultError> {
        if self.0.load(SeqCst) > 0 {
            self.0.fetch_sub(1, SeqCst);
            migration.retain(|_| false);
        }
        migration.run()
    }
}

#[test]
fn success_is_what_the_residency_says() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, PLAIN);
        let id = rig
            .backend
            .attach(64 * 4096, Arc::new(Lazy(AtomicU32::new(3))))
            .unwrap();
        rig.cpu(3, 0).store(5, SeqCst);
        rig.backend.migrate_to_device(id, rig.range(3..4)).unwrap();
        assert_eq!(rig.cpu(3, 0).load(SeqCst), 5);
        rig.wait_for(|s| s.counters.faults_retried == 3);
    });
}

/// A driver that does not evict the folios in the first frames.
struct Keeps(u32);

impl Driver for Keeps {
    fn page_free(&self, _: DeviceFolio) {}

    fn migrate_to_ram(&self, mut migration: ToSystem<'_>) -> Result<Finalized, FaultError> {
        if migration.cause() == Cause::Eviction {
            migration.retain(|folio| folio.frame.0 >= self.0);
        }
        migration.run()
    }
}

#[test]
fn victims_that_stay_do_not_stand_in_the_way() {
    let rig = Rig::new(1024, Engine::Remap, PLAIN);
    let id = rig.backend.attach(512 * 4096, Arc::new(Keeps(64))).unwrap();
    for page in 0..512 {
        rig.backend
            .migrate_to_device(id, rig.range(page..page + 1))
            .unwrap();
    }
    assert_eq!(
        rig.backend
            .migrate_to_device(id, rig.range(600..601))
            .unwrap(),
        1
    );
}

#[test]
fn migrating_what_is_there_moves_nothing() {
    let rig = Rig::new(512, Engine::Remap, PLAIN);
    let device = rig.device(64);
    assert_eq!(
        rig.backend
            .migrate_to_device(device.id, rig.range(0..64))
            .unwrap(),
        64
    );
    assert_eq!(
        rig.backend
            .migrate_to_device(device.id, rig.range(0..64))
            .unwrap(),
        0
    );
    assert_eq!(rig.backend.stats().pages_to_system(), 0);
}

#[test]
fn every_frame_can_be_used_again_after_a_rollback() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, PLAIN);
        let device = rig.device(64);
        for page in 0..8 {
            rig.cpu(page, 0).store(1, SeqCst);
        }
        // Read-only pages are rolled back by copying: their frames keep the contents.
        rig.backend
            .set_permission(rig.range(2..5), Permission::ReadOnly)
            .unwrap();
        // Pages with contents and untouched pages are rolled back after the copy.
        device.faults.lock().unwrap().to_device_after_copy = 1;
        assert_eq!(
            rig.backend
                .migrate_to_device(device.id, rig.range(0..64))
                .unwrap(),
            0
        );
        let all = rig.range(0..64);
        assert_eq!(rig.backend.migrate_to_device(device.id, all).unwrap(), 64);
        assert_eq!(rig.cpu(5, 0).load(SeqCst), 1);
        assert_eq!(rig.cpu(40, 0).load(SeqCst), 0);
    });
}

#[test]
fn a_failed_detach_can_be_tried_again() {
    let rig = Rig::new(512, Engine::Remap, PLAIN);
    let mut device = rig.device(64);
    device.write(1, 0, 1).unwrap();
    device.faults.lock().unwrap().to_ram = vec![FaultError::Fatal("no link".into())];
    let error = rig.backend.detach(device.id).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("1 pages could not be brought back: no link"),
        "{error}"
    );
    rig.backend.detach(device.id).unwrap();
    assert_eq!(rig.cpu(1, 0).load(SeqCst), 1);
}

/// A driver that returns `Retry` every other time.
struct Moody(AtomicU32);

impl Driver for Moody {
    fn page_free(&self, _: DeviceFolio) {}

    fn migrate_to_ram(&self, migration: ToSystem<'_>) -> Result<Finalized, FaultError> {
        match self.0.fetch_add(1, SeqCst) % 2 {
            0 => Err(FaultError::Retry),
            _ => migration.run(),
        }
    }
}

#[test]
fn detach_goes_on_as_long_as_it_makes_progress() {
    let rig = Rig::new(8192, Engine::Copy, PLAIN);
    let id = rig
        .backend
        .attach(8192 * 4096, Arc::new(Moody(AtomicU32::new(0))))
        .unwrap();
    for page in 0..8192 {
        rig.backend
            .migrate_to_device(id, rig.range(page..page + 1))
            .unwrap();
    }
    rig.backend.detach(id).unwrap();
}

#[test]
fn devices_can_be_detached_while_everybody_uses_them() {
    both_engines(|engine| {
        let rig = Rig::with(1024, engine, "density+timeslice:min=20us", |_| {}, 2);
        let added = AtomicU64::new(0);
        for round in 0..20u64 {
            let mut device = rig.device(200);
            let (id, driver) = (device.id, device.driver.clone());
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let (rig, added, stop) = (&rig, &added, &stop);
                let random = |seed: u64| {
                    let mut x = round * 7919 + seed;
                    move || {
                        x ^= x << 13;
                        x ^= x >> 7;
                        x ^= x << 17;
                        ((x % 600) as u32, (x >> 32) as usize % 512)
                    }
                };
                for cpu in 0..2 {
                    scope.spawn(move || {
                        let mut next = random(cpu + 1);
                        while !stop.load(SeqCst) {
                            let (page, word) = next();
                            rig.cpu(page, word).fetch_add(1, SeqCst);
                            added.fetch_add(1, SeqCst);
                        }
                    });
                }
                let (first, used) = mpsc::channel();
                scope.spawn(move || {
                    let mut next = random(99);
                    loop {
                        let (page, word) = next();
                        match device.add(page, word, 1) {
                            Ok(_) => added.fetch_add(1, SeqCst),
                            Err(MirrorError::Detached) => break,
                            Err(error) => panic!("{error}"),
                        };
                        let _ = first.send(());
                    }
                });
                scope.spawn(move || {
                    while !stop.load(SeqCst) {
                        // Returns an error once the device is being detached.
                        let _ = rig.backend.migrate_to_device(id, rig.range(0..300));
                        rig.backend.guest_freed(rig.range(700..1000)).unwrap();
                    }
                });
                for _ in 0..50 {
                    used.recv_timeout(PATIENCE).unwrap();
                }
                rig.backend.detach(id).unwrap();
                let left = rig.on_device(0..1024);
                stop.store(true, SeqCst);
                assert!(left.is_empty(), "{left:?}");
            });
            driver.assert_clean();
            assert_eq!(driver.live(), 0);
        }
        let words = (0..600).flat_map(|page| (0..512).map(move |word| (page, word)));
        let sum: u64 = words
            .map(|(page, word)| rig.cpu(page, word).load(SeqCst))
            .sum();
        assert_eq!(sum, added.load(SeqCst));
        assert!(rig.fatal.lock().unwrap().is_empty());
    });
}

#[test]
fn a_device_fault_on_a_fresh_page_disturbs_no_device() {
    let rig = Rig::new(512, Engine::Remap, PLAIN);
    let mut device = rig.device(64);
    for page in 0..10 {
        device.write(page, 0, 1).unwrap();
    }
    assert_eq!(rig.backend.stats().counters.invalidations, 0);
}

#[test]
fn page_numbers_beyond_everything_are_refused() {
    let rig = Rig::new(512, Engine::Remap, "on-demand");
    let mut device = rig.device(64);
    assert_eq!(
        device.read(u32::MAX, 0),
        Err(MirrorError::OutOfRange(Page(u32::MAX)))
    );
    assert!(rig.backend.word(Page(u32::MAX)).is_err());
    assert!(rig.backend.guest_freed(rig.range(500..u32::MAX)).is_err());
}
