//! Tests the driver contract on real userfaultfd, with both engines: migration both ways, cookies and frees,
//! holes, rollback, pins, permissions, eviction, detach.

mod common;

use std::sync::atomic::Ordering::SeqCst;

use common::{Rig, both_engines};
use hmm_backend::driver::FaultError;
use hmm_backend::engine::EngineChoice;
use hmm_backend::mirror::{MirrorError, Target};
use hmm_backend::observe::EventKind;
use hmm_backend::pages::{Page, PageRange, Permission};
use hmm_backend::residency::Residency;
use hmm_backend::service::FatalCause;
use hmm_backend::{Backend, BackendConfig, snapshot};

#[test]
fn a_page_goes_to_the_device_and_back_with_its_contents() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, "on-demand+timeslice:min=0us");
        let mut device = rig.device(64);
        rig.cpu(5, 7).store(42, SeqCst);
        assert_eq!(device.read(5, 7), Ok(42));
        assert_eq!(rig.on_device(0..512), [5].into());
        device.write(5, 7, 43).unwrap();
        assert_eq!(rig.cpu(5, 7).load(SeqCst), 43);
        assert!(rig.on_device(0..512).is_empty());
        rig.wait_for(|s| (s.fault_latency.count, s.page_free_calls) == (2, 1));
        let stats = rig.backend.stats();
        assert_eq!((stats.pages_to_device(), stats.pages_to_system()), (1, 1));
        assert_eq!(
            (
                stats.cpu_faults,
                stats.first_touch_faults,
                stats.device_faults
            ),
            (2, 1, 1)
        );
        assert_eq!((device.driver.freed(), device.driver.live()), (1, 0));
        device.driver.assert_clean();
    });
}

#[test]
fn untouched_pages_are_zeros_on_either_side() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, "density+timeslice:min=0us");
        let mut device = rig.device(64);
        assert_eq!(device.read(3, 0), Ok(0));
        device.write(100, 1, 9).unwrap();
        assert_eq!(rig.cpu(100, 1).load(SeqCst), 9);
        assert_eq!(rig.cpu(100, 2).load(SeqCst), 0);
        assert_eq!(rig.cpu(3, 511).load(SeqCst), 0);
        assert_eq!(rig.cpu(300, 0).fetch_add(1, SeqCst), 0);
    });
}

#[test]
fn large_folios_move_as_one_and_split_on_partial_faults() {
    both_engines(|engine| {
        let rig = Rig::new(1024, engine, "on-demand+timeslice:min=0us");
        let mut device = rig.device(1024);
        for page in 0..1024 {
            rig.cpu(page, 0).store(page.into(), SeqCst);
        }
        let moved = rig
            .backend
            .migrate_to_device(device.id, rig.range(0..1024))
            .unwrap();
        assert_eq!(moved, 1024);
        assert_eq!(device.driver.live(), 2);
        let bytes = rig.backend.snapshot(device.id, rig.range(0..1024)).unwrap();
        let large = snapshot::DEVICE_LOCAL | snapshot::WRITE | snapshot::LARGE;
        assert!(bytes.iter().all(|b| *b == large));
        // One page returns: its folio is cut until that page is a piece of its own; the other folio stays whole.
        assert_eq!(rig.cpu(77, 0).load(SeqCst), 77);
        assert_eq!(rig.on_device(0..1024).len(), 1023);
        // Nine halvings leave nine pieces after the touched page's frame is free again; plus the whole folio.
        rig.wait_for(|_| device.driver.live() == 9 + 1);
        for page in 0..1024 {
            assert_eq!(device.read(page, 0), Ok(page.into()));
        }
        assert_eq!(
            rig.backend.migrate_to_system(rig.range(0..1024)).unwrap(),
            1024
        );
        for page in 0..1024 {
            assert_eq!(rig.cpu(page, 0).load(SeqCst), u64::from(page));
        }
        assert_eq!(device.driver.live(), 0);
        device.driver.assert_clean();
    });
}

#[test]
fn freed_pages_read_as_zeros_and_their_frames_come_back_once() {
    both_engines(|engine| {
        let rig = Rig::new(1024, engine, "on-demand+timeslice:min=0us");
        let mut device = rig.device(512);
        for page in 0..600 {
            rig.cpu(page, 1).store(7, SeqCst);
        }
        rig.backend
            .migrate_to_device(device.id, rig.range(0..512))
            .unwrap();
        assert!(rig.backend.resident_bytes(rig.range(512..600)).unwrap() == 88 * 4096);
        let in_device_memory = || rig.backend.device_resident_bytes(device.id).unwrap();
        assert_eq!(in_device_memory(), 512 * 4096);
        // Free a part of a device folio, then the rest of it, system pages, and untouched pages.
        assert_eq!(rig.backend.guest_freed(rig.range(10..20)).unwrap(), 10);
        assert_eq!(in_device_memory(), 502 * 4096);
        assert_eq!(rig.backend.guest_freed(rig.range(0..1024)).unwrap(), 590);
        assert_eq!(in_device_memory(), 0);
        assert_eq!(rig.backend.guest_freed(rig.range(0..1024)).unwrap(), 0);
        assert_eq!(rig.backend.resident_bytes(rig.range(0..1024)).unwrap(), 0);
        assert_eq!(device.driver.live(), 0);
        device.driver.assert_clean();
        for page in [0, 15, 511, 512, 599, 1023] {
            assert_eq!(rig.cpu(page, 1).load(SeqCst), 0);
            assert_eq!(device.read(page, 1), Ok(0));
        }
        assert_eq!(rig.backend.stats().pages_to_system(), 0);
    });
}

#[test]
fn eviction_keeps_device_memory_within_its_size() {
    both_engines(|engine| {
        for policy in ["on-demand+timeslice:min=0us", "density+timeslice:min=0us"] {
            let rig = Rig::new(512, engine, policy);
            let mut device = rig.device(16);
            for page in 0..200 {
                device.write(page, 0, u64::from(page) + 1).unwrap();
            }
            let stats = rig.backend.stats();
            assert!(stats.device_pages_peak <= 16);
            assert!(stats.to_system[&hmm_backend::observe::Cause::Eviction] >= 184);
            for page in 0..200 {
                assert_eq!(device.read(page, 0), Ok(u64::from(page) + 1));
                assert!(rig.on_device(0..512).len() <= 16);
            }
            for page in 0..200 {
                assert_eq!(rig.cpu(page, 0).load(SeqCst), u64::from(page) + 1);
            }
            device.driver.assert_clean();
        }
    });
}

#[test]
fn when_nothing_can_be_evicted_the_device_works_in_place() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, "on-demand+timeslice:min=1s");
        let mut device = rig.device(1);
        device.write(0, 0, 1).unwrap();
        // Page 0 is held for a second, and it has the only frame.
        device.write(1, 0, 2).unwrap();
        assert_eq!(device.target(1), Some(Target::System));
        assert_eq!(rig.cpu(1, 0).load(SeqCst), 2);
        assert!(rig.backend.stats().counters.device_memory_full > 0);
    });
}

#[test]
fn failed_migrations_roll_back_with_every_page_unharmed() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, "on-demand+timeslice:min=0us");
        let mut device = rig.device(64);
        for page in 0..32 {
            rig.cpu(page, 0).store(page.into(), SeqCst);
        }
        device.faults.lock().unwrap().to_device_after_copy = 1;
        assert_eq!(
            rig.backend
                .migrate_to_device(device.id, rig.range(0..40))
                .unwrap(),
            0
        );
        device.faults.lock().unwrap().to_device_before_copy = 1;
        assert_eq!(
            rig.backend
                .migrate_to_device(device.id, rig.range(0..40))
                .unwrap(),
            0
        );
        assert_eq!(device.driver.live(), 0);
        assert_eq!(
            rig.backend.word(Page(35)).unwrap().residency(),
            Residency::Untouched
        );
        rig.wait_for(|stats| stats.cpu_faults == 32);
        let faults = rig.backend.stats().cpu_faults;
        for page in 0..32 {
            assert_eq!(rig.cpu(page, 0).fetch_add(1, SeqCst), u64::from(page));
        }
        assert_eq!(rig.backend.stats().cpu_faults, faults);
        // On the way back, the fault is retried until the driver lets the migration through.
        rig.backend
            .migrate_to_device(device.id, rig.range(0..32))
            .unwrap();
        {
            let mut faults = device.faults.lock().unwrap();
            faults.to_ram = vec![
                FaultError::Retry,
                FaultError::OutOfMemory,
                FaultError::Retry,
            ];
            faults.to_ram_after_copy = 2;
        }
        for page in 0..32 {
            assert_eq!(rig.cpu(page, 0).load(SeqCst), u64::from(page) + 1);
            assert_eq!(device.read(page, 0), Ok(u64::from(page) + 1));
        }
        rig.wait_for(|s| s.counters.faults_retried == 5);
        device.driver.assert_clean();
    });
}

#[test]
fn a_fatal_fault_is_reported_and_the_page_keeps_its_contents() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, "on-demand+timeslice:min=0us");
        let mut device = rig.device(64);
        device.write(9, 0, 5).unwrap();
        device.faults.lock().unwrap().to_ram = vec![FaultError::Fatal("link down".into())];
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                // SAFETY: gettid has no preconditions.
                let id = unsafe { libc::gettid() } as u32;
                (id, rig.cpu(9, 0).load(SeqCst))
            });
            let fatal = rig.first_fatal();
            let fault = common::fault(&fatal[0]).unwrap().clone();
            drop(fatal);
            let cause = FatalCause::DriverFailed("link down".into());
            assert_eq!((fault.page, &fault.cause), (Page(9), &cause));
            assert!(rig.backend.is_current(&fault));
            assert!(!reader.is_finished());
            assert_eq!(rig.on_device(0..512), [9].into());
            // The migration now succeeds: the sleeping thread gets the right data.
            rig.backend.migrate_to_system(rig.range(9..10)).unwrap();
            let (thread, value) = reader.join().unwrap();
            assert_eq!((fault.thread, value), (thread, 5));
            assert!(!rig.backend.is_current(&fault));
        });
    });
}

#[test]
fn pages_in_a_hole_are_out_of_everybody_s_reach() {
    both_engines(|engine| {
        let mut config = BackendConfig::new(6 << 20);
        config.engine = EngineChoice::Only(engine);
        config.hole = PageRange::new(Page(512), Page(1024));
        let backend = Backend::new(config).unwrap();
        let range = |start, end| PageRange::new(Page(start), Page(end));
        for outside in [
            range(512, 513),
            range(500, 1100),
            range(1023, 1025),
            range(1535, 1537),
        ] {
            assert!(backend.pin(outside).is_err(), "{outside:?}");
            assert!(backend.guest_freed(outside).is_err(), "{outside:?}");
            assert!(backend.migrate_to_system(outside).is_err(), "{outside:?}");
        }
        for inside in [range(0, 512), range(1024, 1536)] {
            drop(backend.pin(inside).unwrap());
        }
    });
}

#[test]
fn pages_present_from_the_start_cost_no_fault_and_migrate_as_any() {
    both_engines(|engine| {
        // Two whole blocks, which may be huge pages of the host, and parts of other blocks.
        let present =
            [2..7, 512..1536, 1600..1601].map(|it| PageRange::new(Page(it.start), Page(it.end)));
        let change = |config: &mut BackendConfig| config.present = present.to_vec();
        let rig = Rig::with(2048, engine, "on-demand+timeslice:min=0us", change, 1);
        let mut device = rig.device(1024);
        let resident = |pages| rig.backend.resident_bytes(rig.range(pages)).unwrap();
        assert_eq!(resident(2..7) + resident(512..1536), 1029 * 4096);
        for page in [2, 6, 512, 1000, 1535, 1600] {
            assert_eq!(rig.cpu(page, 0).load(SeqCst), 0);
            rig.cpu(page, 1).store(page.into(), SeqCst);
        }
        assert_eq!(rig.backend.stats().cpu_faults, 0);
        // Migrate one page from the middle of a block, then a whole block.
        assert_eq!(device.read(1000, 1), Ok(1000));
        let moved = rig
            .backend
            .migrate_to_device(device.id, rig.range(1024..1536));
        assert_eq!(moved.unwrap(), 512);
        assert_eq!(device.read(1535, 1), Ok(1535));
        assert_eq!(rig.on_device(0..2048).len(), 513);
        assert_eq!(resident(512..1536), 511 * 4096);
        for page in [1000, 1535] {
            assert_eq!(rig.cpu(page, 1).load(SeqCst), page.into());
        }
        assert_eq!(rig.backend.guest_freed(rig.range(512..1024)).unwrap(), 512);
        assert_eq!(resident(512..1024), 0);
        assert_eq!(rig.cpu(512, 1).load(SeqCst), 0);
        device.driver.assert_clean();

        let mut config = BackendConfig::new(1 << 21);
        config.engine = EngineChoice::Only(engine);
        config.present = vec![PageRange::new(Page(511), Page(513))];
        assert!(Backend::new(config).is_err());
    });
}

#[test]
fn pinned_pages_stay_and_devices_reach_them_in_place() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, "on-demand+timeslice:min=0us");
        let mut device = rig.device(64);
        device.write(4, 0, 11).unwrap();
        let pinned = rig.backend.pin(rig.range(3..6)).unwrap();
        assert_eq!(pinned.len(), 3 * 4096);
        assert_eq!(rig.cpu(4, 0).load(SeqCst), 11);
        assert_eq!(device.add(4, 0, 1), Ok(11));
        assert_eq!(device.target(4), Some(Target::System));
        assert_eq!(
            rig.backend
                .migrate_to_device(device.id, rig.range(0..8))
                .unwrap(),
            5
        );
        assert_eq!(rig.backend.guest_freed(rig.range(3..6)).unwrap(), 0);
        assert_eq!(rig.cpu(4, 0).load(SeqCst), 12);
        drop(pinned);
        assert_eq!(
            rig.backend
                .migrate_to_device(device.id, rig.range(3..6))
                .unwrap(),
            3
        );
        assert_eq!(device.read(4, 0), Ok(12));
    });
}

#[test]
fn foreign_pages_come_back_through_their_own_driver() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, "on-demand+timeslice:min=0us");
        let (mut one, mut two) = (rig.device(64), rig.device(64));
        one.write(8, 0, 1).unwrap();
        let byte =
            |device: &common::Device| rig.backend.snapshot(device.id, rig.range(8..9)).unwrap()[0];
        assert_eq!(byte(&one), snapshot::DEVICE_LOCAL | snapshot::WRITE);
        assert_eq!(byte(&two), snapshot::DEVICE_REMOTE | snapshot::WRITE);
        for round in 0..50 {
            assert_eq!(two.add(8, 0, 1), Ok(2 * round + 1));
            assert_eq!(one.add(8, 0, 1), Ok(2 * round + 2));
        }
        assert_eq!(one.driver.freed(), 50);
        one.driver.assert_clean();
        two.driver.assert_clean();
    });
}

#[test]
fn devices_may_not_write_read_only_pages() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, "on-demand+timeslice:min=0us");
        let mut device = rig.device(64);
        device.write(2, 0, 1).unwrap();
        rig.backend
            .set_permission(rig.range(0..4), Permission::ReadOnly)
            .unwrap();
        assert_eq!(device.read(2, 0), Ok(1));
        assert_eq!(device.write(2, 0, 2), Err(MirrorError::Permission(Page(2))));
        // The page is in the device's own memory, and the device has just read it.
        let added = device.add_exclusively(2, 0, 1, || {});
        assert_eq!(added, Err(MirrorError::Permission(Page(2))));
        assert_eq!(device.write(3, 0, 2), Err(MirrorError::Permission(Page(3))));
        assert_eq!(device.read(600, 0), Err(MirrorError::OutOfRange(Page(600))));
        rig.backend
            .set_permission(rig.range(0..4), Permission::Writable)
            .unwrap();
        device.write(2, 0, 2).unwrap();
        assert_eq!(rig.cpu(2, 0).load(SeqCst), 2);
    });
}

#[test]
fn detaching_brings_every_page_back_first() {
    both_engines(|engine| {
        let rig = Rig::new(1024, engine, "density+timeslice:min=1s");
        let mut device = rig.device(700);
        for page in 0..700 {
            device.write(page, 3, u64::from(page) * 3).unwrap();
        }
        let here = rig.on_device(0..1024).len();
        assert!(here > 100);
        device.faults.lock().unwrap().to_ram_after_copy = 3;
        rig.backend.detach(device.id).unwrap();
        assert!(rig.on_device(0..1024).is_empty());
        assert_eq!(device.driver.live(), 0);
        device.driver.assert_clean();
        assert_eq!(device.read(0, 0), Err(MirrorError::Detached));
        assert!(
            rig.backend
                .migrate_to_device(device.id, rig.range(0..1))
                .is_err()
        );
        for page in 0..700 {
            assert_eq!(rig.cpu(page, 3).load(SeqCst), u64::from(page) * 3);
        }
    });
}

#[test]
fn lost_contents_are_fatal_until_the_page_is_freed() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, "on-demand+timeslice:min=0us");
        let mut device = rig.device(64);
        for page in 0..16 {
            rig.cpu(page, 0).store(1, SeqCst);
        }
        rig.backend
            .migrate_to_device(device.id, rig.range(0..8))
            .unwrap();
        for page in [3, 12] {
            rig.backend.memory_failure(Page(page)).unwrap();
            assert!(matches!(
                device.read(page, 0),
                Err(MirrorError::Fatal { .. })
            ));
            assert!(rig.backend.pin(rig.range(page..page + 1)).is_err());
        }
        assert_eq!(
            (device.read(2, 0), device.read(4, 0), device.read(11, 0)),
            (Ok(1), Ok(1), Ok(1))
        );
        assert_eq!(rig.backend.guest_freed(rig.range(0..16)).unwrap(), 16);
        assert_eq!(device.read(3, 0), Ok(0));
        assert_eq!(rig.cpu(12, 0).load(SeqCst), 0);
        device.driver.assert_clean();
    });
}

#[test]
fn whoever_got_a_page_keeps_it_for_the_minimum_residency() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, "on-demand+timeslice:min=1s");
        let mut device = rig.device(64);
        let deferred = || rig.backend.stats().counters.faults_deferred;
        device.write(3, 0, 1).unwrap();
        // The CPU waits for the end of the device's hold ...
        assert_eq!(rig.cpu(3, 0).fetch_add(1, SeqCst), 1);
        assert_eq!(deferred(), 1);
        // ... and the device for the end of the CPU's hold.
        assert_eq!(device.read(3, 0), Ok(2));
        assert_eq!(deferred(), 2);
        assert_eq!(rig.on_device(0..512), [3].into());
    });
}

#[test]
fn what_happens_is_in_the_event_rings() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, "on-demand+timeslice:min=0us");
        let mut device = rig.device(64);
        device.write(3, 0, 1).unwrap();
        assert_eq!(rig.cpu(3, 0).load(SeqCst), 1);
        rig.wait_for(|s| s.fault_latency.count == 1);
        rig.backend.guest_freed(rig.range(3..4)).unwrap();
        let events = rig.backend.drain_events().events;
        let kinds: Vec<_> = events.iter().map(|e| (e.kind, e.page, e.pages)).collect();
        for kind in [
            EventKind::DeviceFault,
            EventKind::ToDevice,
            EventKind::ToSystem,
            EventKind::CpuFault,
            EventKind::Freed,
        ] {
            assert!(
                kinds.contains(&(kind, Page(3), 1)),
                "no {kind:?} in {kinds:?}"
            );
        }
        assert!(events.is_sorted_by_key(|e| e.time));
        assert!(rig.backend.drain_events().events.is_empty());
    });
}
