//! Tests kinds of memory and access besides private device memory: read-only, exclusive, coherent, shared.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};

use std::time::{Duration, Instant};

use common::{Rig, both_engines};
use hmm_backend::mirror::{MirrorError, Target};
use hmm_backend::observe::EventKind;
use hmm_backend::pages::{Page, Permission};
use hmm_backend::residency::Residency;
use hmm_backend::{BackendConfig, Error, snapshot};

/// Longer than any step of these tests takes.
const PATIENCE: Duration = Duration::from_secs(20);
const NO_HOLD: &str = "on-demand+timeslice:min=0us";

/// Writes to a word of a read-only page from another thread and checks that the service reports that as fatal.
/// The thread sleeps until the page is made writable; afterwards it is read-only again.
fn forbidden_write(rig: &Rig, page: u32, value: u64) {
    let seen = rig.fatal.lock().unwrap().len();
    std::thread::scope(|scope| {
        scope.spawn(|| rig.cpu(page, 0).store(value, SeqCst));
        let fatal = rig.fatal.lock().unwrap();
        let (fatal, _) = rig
            .fatal_seen
            .wait_timeout_while(fatal, PATIENCE, |fatal| fatal.len() == seen)
            .unwrap();
        let fault = fatal.get(seen).and_then(common::fault).cloned();
        drop(fatal);
        let fault = fault.unwrap_or_else(|| {
            // Wake a thread that may still sleep in a fault, so that the test ends.
            rig.backend.abandon_faults();
            panic!("page {page} was written although it is read-only");
        });
        assert_eq!(fault.page, Page(page));
        assert!(fault.cause.to_string().contains("read-only"), "{fault:?}");
        rig.backend
            .set_permission(rig.range(page..page + 1), Permission::Writable)
            .unwrap();
    });
    rig.backend
        .set_permission(rig.range(page..page + 1), Permission::ReadOnly)
        .unwrap();
}

#[test]
fn cpus_cannot_write_read_only_pages_wherever_they_are() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, NO_HOLD);
        let mut device = rig.device(64);
        for page in 0..8 {
            rig.cpu(page, 0).store(10 + u64::from(page), SeqCst);
        }
        let range = rig.range(0..16);
        // Pages 0..8 are present, pages 8..16 are untouched.
        rig.backend
            .set_permission(range, Permission::ReadOnly)
            .unwrap();
        forbidden_write(&rig, 1, 100);
        forbidden_write(&rig, 9, 101);
        assert_eq!(rig.cpu(1, 0).load(SeqCst), 100);
        assert_eq!(rig.cpu(9, 0).load(SeqCst), 101);
        assert_eq!(rig.cpu(10, 0).load(SeqCst), 0, "an untouched page is read");
        // Pages that migrate to the device and back, by a fault and by request, stay read-only and keep their
        // contents.
        assert_eq!(rig.backend.migrate_to_device(device.id, range).unwrap(), 16);
        assert_eq!(device.read(2, 0), Ok(12));
        assert_eq!(device.write(2, 0, 1), Err(MirrorError::Permission(Page(2))));
        forbidden_write(&rig, 3, 102);
        assert_eq!(rig.cpu(2, 0).load(SeqCst), 12);
        rig.backend.migrate_to_system(range).unwrap();
        forbidden_write(&rig, 4, 103);
        assert_eq!(rig.cpu(5, 0).load(SeqCst), 15);
        // A free gives zeros and keeps the permission.
        rig.backend.guest_freed(range).unwrap();
        assert_eq!(rig.cpu(5, 0).load(SeqCst), 0);
        forbidden_write(&rig, 5, 104);
        rig.backend
            .set_permission(range, Permission::Writable)
            .unwrap();
        rig.cpu(5, 0).fetch_add(1, SeqCst);
        rig.cpu(11, 0).fetch_add(1, SeqCst);
        assert_eq!(rig.cpu(5, 0).load(SeqCst), 105);
        device.driver.assert_clean();
    });
}

#[test]
fn a_rolled_back_migration_keeps_the_permission() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, NO_HOLD);
        let device = rig.device(64);
        for page in 0..8 {
            rig.cpu(page, 0).store(10 + u64::from(page), SeqCst);
        }
        rig.backend
            .set_permission(rig.range(2..5), Permission::ReadOnly)
            .unwrap();
        device.faults.lock().unwrap().to_device_after_copy = 8;
        let range = rig.range(0..8);
        assert_eq!(rig.backend.migrate_to_device(device.id, range).unwrap(), 0);
        rig.cpu(1, 0).store(1, SeqCst);
        rig.cpu(5, 0).store(5, SeqCst);
        forbidden_write(&rig, 2, 20);
        forbidden_write(&rig, 4, 40);
        let values: Vec<_> = (0..8).map(|p| rig.cpu(p, 0).load(SeqCst)).collect();
        assert_eq!(values, [10, 1, 20, 13, 40, 5, 16, 17]);
        rig.wait_for(|_| device.driver.live() == 0);
        device.driver.assert_clean();
    });
}

#[test]
fn a_large_folio_has_one_permission() {
    both_engines(|engine| {
        let rig = Rig::new(1024, engine, NO_HOLD);
        let mut device = rig.device(1024);
        let all = rig.range(0..512);
        assert_eq!(rig.backend.migrate_to_device(device.id, all).unwrap(), 512);
        rig.backend
            .set_permission(rig.range(100..101), Permission::ReadOnly)
            .unwrap();
        assert!(device.write(99, 0, 7).is_ok() && device.write(101, 0, 8).is_ok());
        assert_eq!(
            device.write(100, 0, 9),
            Err(MirrorError::Permission(Page(100)))
        );
        rig.backend.migrate_to_system(all).unwrap();
        rig.cpu(99, 1).store(1, SeqCst);
        forbidden_write(&rig, 100, 3);
        // Migrating all pages again does not join pages with different permissions into a folio.
        assert_eq!(rig.backend.migrate_to_device(device.id, all).unwrap(), 512);
        assert_eq!(
            device.write(100, 0, 9),
            Err(MirrorError::Permission(Page(100)))
        );
        assert_eq!(device.read(100, 0), Ok(3));
        rig.backend
            .set_permission(all, Permission::ReadOnly)
            .unwrap();
        assert_eq!(device.write(0, 0, 9), Err(MirrorError::Permission(Page(0))));
        rig.backend
            .set_permission(all, Permission::Writable)
            .unwrap();
        assert_eq!(rig.backend.migrate_to_system(all).unwrap(), 512);
        rig.backend.migrate_to_device(device.id, all).unwrap();
        let seen = rig.backend.snapshot(device.id, rig.range(0..1)).unwrap();
        let whole = snapshot::DEVICE_LOCAL | snapshot::WRITE | snapshot::LARGE;
        assert_eq!(seen, [whole], "one folio again");
        device.driver.assert_clean();
    });
}

#[test]
fn no_cpu_comes_between_a_device_s_exclusive_operation() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, NO_HOLD);
        // One page of device memory suffices: exclusive pages use none.
        let mut device = rig.device(1);
        let mut rounds = 0;
        let revoked = || rig.backend.stats().counters.exclusive_revocations > 0;
        let begin = Instant::now();
        let stop = AtomicBool::new(false);
        let added = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(SeqCst) {
                        rig.cpu(3, 5).fetch_add(1, SeqCst);
                        added.fetch_add(1, SeqCst);
                        std::thread::yield_now();
                    }
                });
            }
            let mut added = Ok(());
            // On a busy machine the CPU threads may start late.
            while rounds < 300 || !revoked() && begin.elapsed() < PATIENCE {
                rounds += 1;
                let add = || device.add_exclusively(3, 5, 1000, std::thread::yield_now);
                // The CPU threads must end also when the device's operation panics.
                added = catch_unwind(AssertUnwindSafe(add)).map(Result::unwrap);
                if added.is_err() {
                    break;
                }
            }
            stop.store(true, SeqCst);
            added.unwrap();
        });
        let expected = added.load(SeqCst) + rounds * 1000;
        assert_eq!(rig.cpu(3, 5).load(SeqCst), expected);
        assert!(rig.backend.stats().counters.exclusive_grants > 0 && revoked());
    });
}

#[test]
fn exclusive_access_ends_by_whatever_else_happens_to_the_page() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, NO_HOLD);
        let (mut one, mut two) = (rig.device(64), rig.device(64));
        let range = rig.range(0..8);
        let take = |device: &mut common::Device| {
            device.add_exclusively(4, 0, 1, || {}).unwrap();
            assert_eq!(device.target(4), Some(Target::System));
            let word = rig.backend.word(Page(4)).unwrap();
            assert_eq!(word.residency(), Residency::Exclusive(device.id));
        };
        rig.cpu(4, 0).store(1, SeqCst);
        take(&mut one);
        let seen = |id| rig.backend.snapshot(id, rig.range(4..5)).unwrap()[0] & 0xf0;
        assert_eq!(seen(one.id), snapshot::EXCLUSIVE_LOCAL);
        assert_eq!(seen(two.id), snapshot::EXCLUSIVE_REMOTE);
        // A CPU reads.
        assert_eq!(rig.cpu(4, 0).load(SeqCst), 2);
        assert_eq!(one.target(4), None);
        // Another device takes it, another device reads it.
        take(&mut one);
        take(&mut two);
        assert_eq!(one.target(4), None);
        assert_eq!(one.read(4, 0), Ok(4));
        assert_eq!(two.target(4), None);
        // A permission change; after it, no atomic operation.
        take(&mut two);
        rig.backend
            .set_permission(range, Permission::ReadOnly)
            .unwrap();
        assert_eq!(
            two.add_exclusively(4, 0, 1, || {}),
            Err(MirrorError::Permission(Page(4)))
        );
        rig.backend
            .set_permission(range, Permission::Writable)
            .unwrap();
        // A pin, during which no device can make the page exclusive; then a free, a request, and a detach.
        take(&mut one);
        let pinned = rig.backend.pin(range).unwrap();
        assert_eq!(rig.cpu(4, 0).load(SeqCst), 6);
        assert_eq!(
            one.add_exclusively(4, 0, 1, || {}),
            Err(MirrorError::NotExclusive(Page(4)))
        );
        drop(pinned);
        take(&mut one);
        assert!(rig.backend.guest_freed(range).unwrap() > 0);
        assert_eq!((one.target(4), rig.cpu(4, 0).load(SeqCst)), (None, 0));
        take(&mut one);
        rig.backend.migrate_to_system(range).unwrap();
        assert_eq!((one.target(4), rig.cpu(4, 0).load(SeqCst)), (None, 1));
        take(&mut one);
        rig.backend.detach(one.id).unwrap();
        assert_eq!((one.target(4), rig.cpu(4, 0).load(SeqCst)), (None, 2));
        take(&mut two);
        rig.backend.memory_failure(Page(4)).unwrap();
        assert!(matches!(two.read(4, 0), Err(MirrorError::Fatal { .. })));
    });
}

#[test]
fn exclusive_access_lasts_for_the_minimum_residency() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, "on-demand+timeslice:min=2ms");
        let mut device = rig.device(64);
        device.add_exclusively(0, 0, 1, || {}).unwrap();
        assert_eq!(rig.cpu(0, 0).fetch_add(1, SeqCst), 1);
        assert!(rig.backend.stats().counters.faults_deferred > 0);
    });
}

#[test]
fn a_page_in_its_own_memory_is_a_device_s_alone() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, NO_HOLD);
        let mut device = rig.device(64);
        device.write(0, 0, 5).unwrap();
        device.add_exclusively(0, 0, 1, || {}).unwrap();
        assert!(matches!(device.target(0), Some(Target::Device(_))));
        assert_eq!(rig.cpu(0, 0).load(SeqCst), 6);
    });
}

#[test]
fn coherent_pages_are_reached_by_all_and_move_only_when_asked_to() {
    both_engines(|engine| {
        let rig = Rig::new(1024, engine, NO_HOLD);
        let (mut own, mut other) = (rig.coherent_device(512), rig.device(64));
        let range = rig.range(0..16);
        rig.cpu(2, 0).store(12, SeqCst);
        assert_eq!(own.read(2, 0), Ok(12));
        assert_eq!(own.target(2), Some(Target::System), "faults move nothing");
        assert_eq!(rig.backend.migrate_to_device(own.id, range).unwrap(), 16);
        assert_eq!(own.driver.live(), 1, "one folio");
        rig.wait_for(|stats| stats.cpu_faults == 1);
        let faults = rig.backend.stats().cpu_faults;
        rig.cpu(2, 0).fetch_add(1, SeqCst);
        rig.cpu(3, 0).fetch_add(3, SeqCst);
        assert_eq!(rig.backend.stats().cpu_faults, faults, "CPUs do not fault");
        assert_eq!((own.read(2, 0), other.read(2, 0)), (Ok(13), Ok(13)));
        other.write(2, 0, 14).unwrap();
        assert_eq!((own.read(2, 0), rig.cpu(2, 0).load(SeqCst)), (Ok(14), 14));
        assert!(matches!(own.target(2), Some(Target::Device(_))));
        let view = |id| rig.backend.snapshot(id, rig.range(2..3)).unwrap()[0];
        assert_eq!(view(own.id), snapshot::COHERENT_LOCAL | snapshot::WRITE);
        assert_eq!(view(other.id), snapshot::COHERENT_REMOTE | snapshot::WRITE);
        // A long-term pin moves its pages to system memory, and only those.
        let pinned = rig.backend.pin(rig.range(4..5)).unwrap();
        let place = |page| rig.backend.word(Page(page)).unwrap().residency();
        assert_eq!(place(4), Residency::System);
        assert!(matches!(place(5), Residency::Coherent(_)));
        drop(pinned);
        // A request moves pages to system memory, too; a free drops the contents and the frame.
        assert_eq!(rig.backend.migrate_to_system(rig.range(0..4)).unwrap(), 4);
        assert_eq!(place(2), Residency::System);
        assert_eq!(rig.cpu(2, 0).load(SeqCst), 14);
        rig.cpu(8, 0).store(8, SeqCst);
        assert_eq!(rig.backend.guest_freed(rig.range(8..9)).unwrap(), 1);
        assert_eq!(rig.cpu(8, 0).load(SeqCst), 0);
        // Permissions, memory failures, and a detach.
        rig.backend
            .set_permission(rig.range(6..7), Permission::ReadOnly)
            .unwrap();
        assert_eq!(own.write(6, 0, 1), Err(MirrorError::Permission(Page(6))));
        forbidden_write(&rig, 6, 60);
        rig.backend.memory_failure(Page(7)).unwrap();
        assert!(matches!(own.read(7, 0), Err(MirrorError::Fatal { .. })));
        assert_eq!(own.read(6, 0), Ok(60));
        rig.cpu(9, 0).store(9, SeqCst);
        rig.backend.detach(own.id).unwrap();
        assert_eq!(
            (place(9), rig.cpu(9, 0).load(SeqCst)),
            (Residency::System, 9)
        );
        assert_eq!(own.driver.live(), 0);
        own.driver.assert_clean();
    });
}

#[test]
fn a_failed_migration_to_coherent_memory_harms_nothing() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, NO_HOLD);
        let device = rig.coherent_device(8);
        rig.cpu(1, 0).store(11, SeqCst);
        let range = rig.range(0..4);
        for before_copy in [true, false] {
            let mut faults = device.faults.lock().unwrap();
            faults.to_device_before_copy = u32::from(before_copy);
            faults.to_device_after_copy = u32::from(!before_copy);
            drop(faults);
            assert_eq!(rig.backend.migrate_to_device(device.id, range).unwrap(), 0);
            assert_eq!(
                (rig.cpu(1, 0).load(SeqCst), rig.cpu(0, 0).load(SeqCst)),
                (11, 0)
            );
            assert_eq!(device.driver.live(), 0);
        }
        // If a request is larger than the device's memory, the part that fits moves. For the next request,
        // eviction makes room.
        assert_eq!(
            rig.backend
                .migrate_to_device(device.id, rig.range(0..16))
                .unwrap(),
            8
        );
        assert_eq!(
            rig.backend
                .migrate_to_device(device.id, rig.range(32..40))
                .unwrap(),
            8
        );
        assert_eq!(rig.backend.stats().device_pages_peak, 8);
        device.driver.assert_clean();
    });
}

#[test]
fn the_peak_of_device_memory_is_of_all_devices_at_a_time() {
    both_engines(|engine| {
        let rig = Rig::new(1024, engine, NO_HOLD);
        let (one, two) = (rig.device(32), rig.coherent_device(32));
        let peak = || rig.backend.stats().device_pages_peak;
        let put = |device: &common::Device, pages| {
            let moved = rig.backend.migrate_to_device(device.id, rig.range(pages));
            moved.unwrap()
        };
        assert_eq!((put(&one, 0..12), peak()), (12, 12));
        // Pages that have left one device before others come to the second are not counted at the same time,
        // however they left.
        rig.backend.migrate_to_system(rig.range(0..6)).unwrap();
        rig.backend.guest_freed(rig.range(6..12)).unwrap();
        assert_eq!((put(&two, 512..522), peak()), (10, 12));
        assert_eq!((put(&one, 0..5), peak()), (5, 15));
        // Pages of a migration that was rolled back do not count.
        one.faults.lock().unwrap().to_device_after_copy = 1;
        assert_eq!((put(&one, 16..20), peak()), (0, 15));
        // A part of a folio is freed, and a device is detached.
        rig.backend.guest_freed(rig.range(513..514)).unwrap();
        rig.backend.detach(one.id).unwrap();
        assert_eq!((put(&two, 600..606), peak()), (6, 15));
        assert_eq!((put(&two, 700..701), peak()), (1, 16));
    });
}

/// A device's fault is counted once, wherever the page was and however it became accessible.
#[test]
fn a_fault_of_a_device_is_counted_once() {
    both_engines(|engine| {
        let events = |config: &mut BackendConfig| config.events = 1000;
        let rig = Rig::with(1024, engine, "on-demand", events, 1);
        let (mut own, mut coherent) = (rig.device(32), rig.coherent_device(32));
        rig.cpu(2, 0).store(12, SeqCst);
        // The page migrates (a fault); it is on the device already (no fault); pages are mapped in place, one
        // untouched and one present (two faults).
        own.read(2, 0).unwrap();
        own.read(2, 0).unwrap();
        coherent.write(513, 0, 1).unwrap();
        rig.cpu(514, 0).store(12, SeqCst);
        coherent.read(514, 0).unwrap();
        // An atomic operation (a fault).
        rig.cpu(5, 0).store(1, SeqCst);
        own.add_exclusively(5, 0, 1, || ()).unwrap();
        rig.cpu(5, 0).load(SeqCst);
        let events = rig.backend.drain_events().events;
        let of = |kind| events.iter().filter(|event| event.kind == kind).count() as u64;
        let stats = rig.backend.stats();
        assert_eq!(stats.device_faults, 4, "{events:?}");
        assert_eq!(stats.device_fault_latency.count, 4);
        assert_eq!(of(EventKind::DeviceFault), 4);
        // A CPU resumes a moment before its fault is counted.
        rig.wait_for(|stats| (stats.cpu_faults, stats.fault_latency.count) == (4, 4));
    });
}

#[test]
fn shared_memory_is_mirrored_in_place_and_never_moves() {
    both_engines(|engine| {
        let rig = Rig::with(1024, engine, NO_HOLD, |config| config.shared = 2 << 20, 1);
        let mut device = rig.device(600);
        let (file, shared) = rig.backend.shared_memory().unwrap();
        assert_eq!(shared, rig.range(512..1024));
        let file = file.try_clone().unwrap();
        use std::os::unix::fs::FileExt;
        let through_file = |page: u32| {
            let mut bytes = [0; 8];
            let offset = u64::from(page - 512) * 4096;
            file.read_exact_at(&mut bytes, offset).unwrap();
            u64::from_ne_bytes(bytes)
        };
        rig.cpu(600, 0).store(1, SeqCst);
        assert_eq!(device.add(600, 0, 1), Ok(1));
        assert_eq!(device.target(600), Some(Target::System));
        assert_eq!((through_file(600), rig.cpu(600, 0).load(SeqCst)), (2, 2));
        let all = rig.range(0..1024);
        assert_eq!(rig.backend.migrate_to_device(device.id, all).unwrap(), 512);
        assert_eq!(
            rig.backend.stats().cpu_faults,
            0,
            "shared memory does not fault"
        );
        assert_eq!(
            device.add_exclusively(600, 0, 1, || {}),
            Err(MirrorError::NotExclusive(Page(600)))
        );
        for refused in [
            rig.backend.set_permission(all, Permission::ReadOnly),
            rig.backend.memory_failure(Page(600)),
        ] {
            assert!(matches!(refused, Err(Error::Shared(_))), "{refused:?}");
        }
        // Shared memory does not migrate to coherent memory either, although no contents would have to be
        // copied.
        let coherent = rig.coherent_device(600);
        let moved = rig.backend.migrate_to_device(coherent.id, shared);
        assert_eq!(moved.unwrap(), 0);
        drop(rig.backend.pin(rig.range(600..602)).unwrap());
        rig.backend.guest_freed(shared).unwrap();
        assert_eq!((through_file(600), device.read(600, 0)), (0, Ok(0)));
    });
}
