//! Tests read duplication: a page that is mostly read is in a device's memory and in system memory until a CPU
//! or a device writes to it.

#[path = "../common/mod.rs"]
mod common;
mod crowd;
mod refusals;

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;

use common::{Device, Rig, both_engines};
use hmm_backend::engine::Engine;
use hmm_backend::mirror::{MirrorError, Target};
use hmm_backend::observe::{Counters, Event, EventKind};
use hmm_backend::pages::{Page, PageRange, Permission};
use hmm_backend::residency::{Placed, Residency};
use hmm_backend::snapshot;
use hmm_backend::testing::{KernelAnswers, KernelCall, MadeUpAnswer};

const POLICY: &str = "on-demand+hints+timeslice:min=0us";

fn read_mostly(rig: &Rig, pages: std::ops::Range<u32>) {
    let hint = "read-mostly".parse().unwrap();
    rig.backend.hint(rig.range(pages), hint).unwrap();
}

/// Returns a rig whose 512 pages all have the hint read-mostly.
fn rig(engine: Engine) -> Rig {
    let rig = Rig::new(512, engine, POLICY);
    read_mostly(&rig, 0..512);
    rig
}

fn residency(rig: &Rig, page: u32) -> Residency {
    rig.backend.settle(rig.range(page..page + 1)).unwrap();
    rig.backend.word(Page(page)).unwrap().residency()
}

/// Returns the pages of the range that are duplicates.
fn duplicates(rig: &Rig, pages: std::ops::Range<u32>) -> Vec<u32> {
    pages.filter(|p| residency(rig, *p).duplicated()).collect()
}

/// Migrates pages to the device, each with its number plus 10 in its first word, and then reads them as a CPU.
fn duplicate(rig: &Rig, device: &Device, pages: std::ops::Range<u32>) {
    for page in pages.clone() {
        rig.cpu(page, 0).store(10 + u64::from(page), SeqCst);
    }
    let range = rig.range(pages.clone());
    let moved = rig.backend.migrate_to_device(device.id, range).unwrap();
    assert_eq!(moved, u64::from(range.len()));
    for page in pages.clone() {
        assert_eq!(rig.cpu(page, 0).load(SeqCst), 10 + u64::from(page));
    }
    assert_eq!(duplicates(rig, pages.clone()), pages.collect::<Vec<_>>());
    // The service counts the pages last.
    rig.wait_for(|stats| stats.pages_to_system() >= moved);
}

fn counters(rig: &Rig) -> Counters {
    rig.backend.stats().counters
}

fn system_bytes(rig: &Rig, page: u32) -> u64 {
    let range = rig.range(page..page + 1);
    rig.backend.resident_bytes(range).unwrap()
}

#[test]
fn a_cpu_s_read_leaves_the_device_its_copy() {
    both_engines(|engine| {
        let rig = rig(engine);
        let (mut device, mut other) = (rig.device(64), rig.device(64));
        for page in 0..8 {
            rig.cpu(page, 5).store(50 + u64::from(page), SeqCst);
        }
        rig.backend
            .migrate_to_device(device.id, rig.range(0..8))
            .unwrap();
        assert_eq!(device.write(3, 6, 7), Ok(()), "a writable translation");
        let Some(Target::Device(frame)) = device.target(3) else {
            panic!("page 3 is on the device");
        };
        assert_eq!(rig.cpu(3, 5).load(SeqCst), 53);
        // Only the page that was read is cut out of the folio.
        assert_eq!(duplicates(&rig, 0..8), [3]);
        let there = Residency::Duplicated(Placed {
            device: device.id,
            frame,
            order: 0,
        });
        assert_eq!(residency(&rig, 3), there);
        assert_eq!(device.target(3), None, "it could be written");
        assert_eq!(system_bytes(&rig, 3), 4096);
        assert_eq!(device.driver.freed(), 0);
        // The CPU and the device read their own copies from now on.
        rig.wait_for(|stats| stats.cpu_faults == 9);
        let faults = rig.backend.stats().cpu_faults;
        assert_eq!((device.read(3, 5), device.read(3, 6)), (Ok(53), Ok(7)));
        assert_eq!(device.target(3), Some(Target::Device(frame)));
        assert_eq!(rig.cpu(3, 6).load(SeqCst), 7);
        assert_eq!(counters(&rig).mapped_in_place, 0);
        // A page has only one duplicate: another device reads the system copy in place.
        assert_eq!(other.read(3, 5), Ok(53));
        assert_eq!(other.target(3), Some(Target::System));
        assert_eq!(residency(&rig, 3), there);
        let seen = |id| rig.backend.snapshot(id, rig.range(3..4)).unwrap()[0];
        assert_eq!(seen(device.id), snapshot::DEVICE_LOCAL | snapshot::READ);
        assert_eq!(seen(other.id), snapshot::READ);
        rig.wait_for(|stats| stats.pages_to_system() > 0);
        let stats = rig.backend.stats();
        assert_eq!(stats.cpu_faults, faults);
        assert_eq!((stats.pages_to_device(), stats.pages_to_system()), (8, 1));
        assert_eq!(
            (stats.counters.duplicated, stats.counters.collapsed),
            (1, 0)
        );
        // A page without the hint read-mostly migrates.
        let hint = "not-read-mostly".parse().unwrap();
        rig.backend.hint(rig.range(4..5), hint).unwrap();
        assert_eq!(rig.cpu(4, 5).load(SeqCst), 54);
        assert_eq!(residency(&rig, 4), Residency::System);
        device.driver.assert_clean();
    });
}

#[test]
fn a_cpu_s_write_leaves_the_copy_in_system_memory() {
    both_engines(|engine| {
        let rig = rig(engine);
        let (mut device, mut other) = (rig.device(64), rig.device(64));
        duplicate(&rig, &device, 0..4);
        assert_eq!((device.read(2, 0), other.read(2, 0)), (Ok(12), Ok(12)));
        assert_eq!(rig.cpu(2, 0).fetch_add(100, SeqCst), 12);
        assert_eq!(residency(&rig, 2), Residency::System);
        assert_eq!((device.target(2), other.target(2)), (None, None));
        assert_eq!(duplicates(&rig, 0..4), [0, 1, 3]);
        rig.wait_for(|stats| stats.page_free_calls == 1);
        assert_eq!((device.driver.live(), counters(&rig).collapsed), (3, 1));
        // No contents moved, and a second write takes no fault.
        assert_eq!(rig.backend.stats().pages_to_system(), 4);
        let faults = rig.backend.stats().cpu_faults;
        rig.cpu(2, 1).store(1, SeqCst);
        assert_eq!(rig.backend.stats().cpu_faults, faults);
        // The device reads the page again, and the CPU's read duplicates it again.
        assert_eq!((device.read(2, 0), device.read(2, 1)), (Ok(112), Ok(1)));
        assert_eq!(rig.cpu(2, 0).load(SeqCst), 112);
        assert_eq!(duplicates(&rig, 0..4), [0, 1, 2, 3]);
        device.driver.assert_clean();
    });
}

#[test]
fn a_device_s_write_leaves_the_copy_in_its_memory() {
    both_engines(|engine| {
        let rig = rig(engine);
        let (mut device, mut other) = (rig.device(64), rig.device(64));
        duplicate(&rig, &device, 0..4);
        assert_eq!((device.read(2, 0), other.read(2, 0)), (Ok(12), Ok(12)));
        let target = device.target(2);
        assert_eq!(device.add(2, 0, 100), Ok(12));
        assert_eq!(device.target(2), target, "the same frame");
        assert!(matches!(residency(&rig, 2), Residency::Device(_)));
        assert_eq!((system_bytes(&rig, 2), other.target(2)), (0, None));
        assert_eq!(counters(&rig).collapsed, 1);
        assert_eq!(rig.backend.stats().pages_to_device(), 4, "nothing moved");
        assert_eq!(device.driver.freed(), 0);
        assert_eq!(rig.cpu(2, 0).load(SeqCst), 112);
        assert_eq!(duplicates(&rig, 0..4), [0, 1, 2, 3]);
        // An atomic operation of the device ends the duplication, too.
        device.add_exclusively(2, 0, 1000, || {}).unwrap();
        assert_eq!(rig.cpu(2, 0).load(SeqCst), 1112);
        device.driver.assert_clean();
    });
}

/// Each operation uses a page of its own, whose two copies must have been equal.
#[test]
fn whatever_else_happens_ends_a_duplicate_once() {
    both_engines(|engine| {
        let rig = rig(engine);
        let (mut device, mut other) = (rig.device(64), rig.device(64));
        duplicate(&rig, &device, 0..10);
        let freed = |device: &Device| device.driver.freed();
        let ended = |device: &Device, page: u32, n: u64| {
            rig.wait_for(|_| freed(device) == n);
            assert!(!residency(&rig, page).duplicated(), "page {page}");
        };
        // Another device writes.
        assert_eq!(other.add(0, 0, 100), Ok(10));
        ended(&device, 0, 1);
        assert_eq!(rig.cpu(0, 0).load(SeqCst), 110);
        // A pin, during which the page stays in system memory.
        let pinned = rig.backend.pin(rig.range(1..2)).unwrap();
        ended(&device, 1, 2);
        // SAFETY: the pinned page is present, and no other thread uses it.
        unsafe { pinned.host().cast::<u64>().write_volatile(111) };
        assert_eq!(device.read(1, 0), Ok(111));
        assert_eq!(device.target(1), Some(Target::System));
        drop(pinned);
        // A request for system memory; a request for the device moves nothing.
        let here = rig.range(2..3);
        assert_eq!(rig.backend.migrate_to_device(device.id, here).unwrap(), 0);
        assert_eq!(rig.backend.migrate_to_device(other.id, here).unwrap(), 0);
        assert_eq!(duplicates(&rig, 2..3), [2]);
        assert_eq!(rig.backend.migrate_to_system(here).unwrap(), 1);
        ended(&device, 2, 3);
        rig.cpu(2, 0).fetch_add(100, SeqCst);
        assert_eq!(device.read(2, 0), Ok(112));
        // Another device's atomic operation.
        other.add_exclusively(3, 0, 100, || {}).unwrap();
        ended(&device, 3, 4);
        assert_eq!(rig.cpu(3, 0).load(SeqCst), 113);
        // A free drops both copies.
        assert_eq!(rig.backend.guest_freed(rig.range(4..5)).unwrap(), 1);
        ended(&device, 4, 5);
        assert_eq!(system_bytes(&rig, 4), 0);
        assert_eq!((rig.cpu(4, 0).load(SeqCst), device.read(4, 0)), (0, Ok(0)));
        // A memory failure.
        rig.backend.memory_failure(Page(5)).unwrap();
        ended(&device, 5, 6);
        assert_eq!(system_bytes(&rig, 5), 0);
        assert!(matches!(device.read(5, 0), Err(MirrorError::Fatal { .. })));
        // Detach.
        assert_eq!(duplicates(&rig, 6..10), [6, 7, 8, 9]);
        rig.backend.detach(device.id).unwrap();
        assert_eq!(device.driver.live(), 0);
        assert_eq!(duplicates(&rig, 1..10), []);
        for page in 6..10 {
            let cell = rig.cpu(page, 0);
            assert_eq!(cell.fetch_add(1, SeqCst), 10 + u64::from(page));
        }
        device.driver.assert_clean();
        other.driver.assert_clean();
    });
}

/// The CPUs that read make progress: a device that writes waits for the hold of the CPUs' copy, a CPU that
/// writes does not.
#[test]
fn the_hold_of_a_duplicate_is_the_cpus() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, "on-demand+hints+timeslice:min=1s");
        read_mostly(&rig, 0..512);
        let mut device = rig.device(64);
        duplicate(&rig, &device, 0..2);
        let deferred = counters(&rig).faults_deferred;
        rig.cpu(0, 0).store(1, SeqCst);
        assert_eq!(counters(&rig).faults_deferred, deferred);
        assert_eq!(device.add(1, 0, 1), Ok(11));
        assert_eq!(counters(&rig).faults_deferred, deferred + 1);
        assert_eq!(counters(&rig).collapsed, 2);
        device.driver.assert_clean();
    });
}

#[test]
fn a_coherent_device_works_on_system_memory_s_copy() {
    both_engines(|engine| {
        let rig = rig(engine);
        let (device, mut coherent) = (rig.device(64), rig.coherent_device(64));
        duplicate(&rig, &device, 0..1);
        assert_eq!(coherent.read(0, 0), Ok(10));
        assert_eq!(coherent.target(0), Some(Target::System));
        assert_eq!(duplicates(&rig, 0..1), [0]);
        assert_eq!(coherent.add(0, 0, 5), Ok(10));
        assert_eq!(residency(&rig, 0), Residency::System);
        assert_eq!(rig.cpu(0, 0).load(SeqCst), 15);
        // CPUs and devices reach the pages of coherent memory, so there is nothing to duplicate.
        let here = rig.range(0..1);
        let moved = rig.backend.migrate_to_device(coherent.id, here).unwrap();
        assert_eq!((moved, rig.cpu(0, 0).load(SeqCst)), (1, 15));
        assert!(matches!(residency(&rig, 0), Residency::Coherent(_)));
        device.driver.assert_clean();
        coherent.driver.assert_clean();
    });
}

#[test]
fn duplicates_are_evicted_without_moving_anything() {
    both_engines(|engine| {
        let rig = rig(engine);
        let mut device = rig.device(16);
        duplicate(&rig, &device, 0..16);
        let before = rig.backend.stats();
        for page in 100..116 {
            device.write(page, 0, u64::from(page)).unwrap();
        }
        assert_eq!(duplicates(&rig, 0..16), []);
        let stats = rig.backend.stats();
        assert_eq!(stats.to_system, before.to_system);
        assert_eq!(stats.counters.collapsed, 16);
        for page in 0..16 {
            rig.cpu(page, 0).fetch_add(1, SeqCst);
            assert_eq!(rig.cpu(page, 0).load(SeqCst), 11 + u64::from(page));
        }
        for page in 100..116 {
            assert_eq!(rig.cpu(page, 0).load(SeqCst), u64::from(page));
        }
        rig.wait_for(|stats| stats.page_free_calls == 16 && device.driver.live() == 16);
        device.driver.assert_clean();
    });
}

#[test]
fn read_only_pages_are_duplicated_and_stay_read_only() {
    both_engines(|engine| {
        let rig = rig(engine);
        let mut device = rig.device(64);
        duplicate(&rig, &device, 0..4);
        let set = |pages, to| rig.backend.set_permission(rig.range(pages), to).unwrap();
        // A duplicate is made read-only, and writable again.
        set(0..2, Permission::ReadOnly);
        assert_eq!(device.write(0, 0, 1), Err(MirrorError::Permission(Page(0))));
        assert_eq!(
            (device.read(0, 0), rig.cpu(0, 0).load(SeqCst)),
            (Ok(10), 10)
        );
        set(0..1, Permission::Writable);
        assert_eq!(duplicates(&rig, 0..4), [0, 1, 2, 3]);
        rig.cpu(0, 0).fetch_add(100, SeqCst);
        assert_eq!(
            (residency(&rig, 0), device.read(0, 0)),
            (Residency::System, Ok(110))
        );
        // A page stays read-only when the duplication ends: a CPU that writes sleeps until it has the
        // permission.
        rig.backend.migrate_to_system(rig.range(1..2)).unwrap();
        assert_eq!(residency(&rig, 1), Residency::System);
        std::thread::scope(|scope| {
            scope.spawn(|| rig.cpu(1, 0).fetch_add(100, SeqCst));
            let seen = rig.fatal_seen.wait_timeout_while(
                rig.fatal.lock().unwrap(),
                std::time::Duration::from_secs(20),
                |fatal| fatal.is_empty(),
            );
            let (fatal, late) = seen.unwrap();
            drop(fatal);
            if late.timed_out() {
                rig.backend.abandon_faults();
                panic!("page 1 was written although it is read-only");
            }
            set(1..2, Permission::Writable);
        });
        assert_eq!(rig.cpu(1, 0).load(SeqCst), 111);
        // A page that was read-only before is duplicated as well.
        set(8..9, Permission::ReadOnly);
        assert_eq!(device.read(8, 0), Ok(0));
        assert_eq!(rig.cpu(8, 0).load(SeqCst), 0);
        assert_eq!(duplicates(&rig, 8..9), [8]);
        assert_eq!(device.write(8, 0, 1), Err(MirrorError::Permission(Page(8))));
        device.driver.assert_clean();
    });
}

#[test]
fn what_the_policy_brings_along_is_duplicated_too() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, "density:threshold=1+hints+timeslice:min=0us");
        read_mostly(&rig, 0..100);
        let mut device = rig.device(512);
        // Migrate by request, not by a CPU's fault, after which the service might still be prefetching.
        let all = rig.range(0..128);
        assert_eq!(rig.backend.migrate_to_device(device.id, all).unwrap(), 128);
        for page in 0..128 {
            device.write(page, 0, 10 + u64::from(page)).unwrap();
        }
        assert_eq!(rig.cpu(50, 0).load(SeqCst), 60);
        rig.wait_for(|stats| stats.pages_to_system() >= 128);
        assert_eq!(duplicates(&rig, 0..128), (0..100).collect::<Vec<_>>());
        for page in 0..128 {
            assert_eq!(rig.cpu(page, 0).load(SeqCst), 10 + u64::from(page));
        }
        assert_eq!(rig.backend.stats().counters.duplicated, 100);
        // A large folio of duplicates migrates as one, and a CPU's write cuts one page out of it.
        rig.cpu(40, 0).store(1, SeqCst);
        assert_eq!(duplicates(&rig, 32..48).len(), 15);
        device.driver.assert_clean();
    });
}

#[test]
fn events_tell_where_the_copies_are() {
    both_engines(|engine| {
        let rig = rig(engine);
        let mut device = rig.device(64);
        duplicate(&rig, &device, 0..2);
        rig.cpu(0, 0).store(1, SeqCst);
        device.write(1, 0, 1).unwrap();
        let events = std::cell::RefCell::new(Vec::new());
        rig.wait_for(|_| {
            let mut events = events.borrow_mut();
            events.extend(rig.backend.drain_events().events);
            let collapsed = |e: &&Event| e.kind == EventKind::Collapsed;
            events.iter().filter(collapsed).count() == 2
        });
        let events = events.into_inner();
        let told = |kind: EventKind| -> Vec<_> {
            let those = events.iter().filter(|e| e.kind == kind);
            let mut told: Vec<_> = those.map(|e| (e.page.0, e.pages, e.device)).collect();
            told.sort();
            told
        };
        let id = Some(device.id);
        assert_eq!(told(EventKind::Duplicated), [(0, 1, id), (1, 1, id)]);
        assert_eq!(told(EventKind::Collapsed), [(0, 1, None), (1, 1, id)]);
        assert_eq!(told(EventKind::ToSystem), []);
    });
}

/// If the host's kernel has lost the system copy of a duplicate, the page comes again from the device.
#[test]
fn a_vanished_copy_comes_again_from_its_device() {
    both_engines(|engine| {
        let rig = rig(engine);
        let device = rig.device(64);
        duplicate(&rig, &device, 3..4);
        let page = rig.cpu(3, 0).as_ptr();
        // SAFETY: the page belongs to this test, which wants this copy of the contents to vanish.
        let gone = unsafe { libc::madvise(page.cast(), 4096, libc::MADV_DONTNEED) };
        assert_eq!(gone, 0);
        assert_eq!(rig.cpu(3, 0).load(SeqCst), 13);
        assert!(rig.fatal.lock().unwrap().is_empty());
        device.driver.assert_clean();
    });
}

/// The host refuses to lift the write protection when a duplication ends: the next CPU's write finds that and
/// makes the host lift it.
#[test]
fn a_protection_that_stays_is_lifted_by_the_next_write() {
    both_engines(|engine| {
        let script = Arc::new(NotYet(AtomicU32::new(0)));
        let kernel = script.clone();
        let change = |config: &mut hmm_backend::BackendConfig| config.kernel = Some(kernel);
        let rig = Rig::with(512, engine, POLICY, change, 1);
        read_mostly(&rig, 0..512);
        let device = rig.device(64);
        duplicate(&rig, &device, 3..4);
        script.0.store(2, SeqCst);
        assert_eq!(rig.cpu(3, 0).fetch_add(1, SeqCst), 13);
        assert_eq!(
            script.0.load(SeqCst),
            1,
            "the protection was lifted by the fault after the write"
        );
        assert!(rig.fatal.lock().unwrap().is_empty());
        device.driver.assert_clean();
    });
}

/// Refuses the next call that changes a protection. The test sets it to 2, and the refusal sets it to 1.
struct NotYet(AtomicU32);

impl KernelAnswers for NotYet {
    fn answer(&self, call: KernelCall, _: PageRange) -> Option<MadeUpAnswer> {
        let next = self.0.compare_exchange(2, 1, SeqCst, SeqCst);
        (call == KernelCall::Protect && next.is_ok()).then_some(MadeUpAnswer {
            errno: libc::ENOMEM,
            ..MadeUpAnswer::default()
        })
    }
}
