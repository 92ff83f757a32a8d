//! Read duplication (`migrate/duplicate.rs`): a CPU that reads a page on the device gets a read-only copy, and a
//! write by either side ends the duplication.

use super::*;

impl World {
    /// Fills missing pages from frames and wakes the CPUs that sleep for them, as the kernel does.
    pub(super) fn give(&self, range: PageRange, first: u32, protected: bool) {
        for (frame, page) in (first..).zip(range.pages()) {
            let value = self.read_frame(frame);
            *self.page(page.0) = SystemPage {
                present: true,
                protected,
                value,
            };
            self.sleepers.wake_faults(PageRange::single(page));
        }
    }

    /// Lets CPUs write again and wakes the writers.
    pub(super) fn lift_protection(&self, range: PageRange) {
        for page in range.pages() {
            self.page(page.0).protected = false;
            self.sleepers.wake_faults(PageRange::single(page));
        }
    }

    /// Duplicates a device folio: all phases.
    pub(super) fn duplicate(&self, mut lock: FolioLock<'_>) {
        let Residency::Device(Placed { frame, .. }) = lock.word().residency() else {
            panic!("only device folios are duplicated");
        };
        self.invalidate(&mut lock);
        self.give(lock.range(), frame.0, true);
        lock.publish_folio(|w| w.to_duplicated());
    }

    pub(super) fn drop_system_copy(&self, page: u32) {
        let Some(lock) = self.try_lock(page) else {
            return;
        };
        if !lock.word().residency().duplicated() {
            return;
        }
        let mut lock = self.halve_for(page, lock);
        self.invalidate(&mut lock);
        *self.page(page) = SystemPage::default();
        lock.publish_folio(|w| w.to_device_alone());
    }

    /// A CPU reads the page's number.
    fn read(&self, cpu: usize, page: u32) -> u64 {
        loop {
            let it = *self.page(page);
            if it.present {
                return it.value;
            }
            self.wait_in_fault(cpu, page, false);
        }
    }

    /// The device reads the page's number through its mirror.
    fn device_read(&self, page: u32) -> u64 {
        loop {
            let mmu = self.mmu.lock().unwrap();
            match mmu[page as usize] {
                Some(Target::Frame(frame) | Target::ReadOnly(frame)) => {
                    return self.read_frame(frame);
                }
                Some(Target::System) => return self.page(page).value,
                None => {}
            }
            drop(mmu);
            self.device_fault(page, false);
        }
    }
}

/// The device can write the page until it is duplicated. What it wrote before is in both copies; a later write ends
/// the duplication.
#[test]
fn a_read_races_a_device_that_writes() {
    model(3, |world| {
        world.device(1);
        let device = meanwhile(&world, |w| {
            w.device(1);
            assert_eq!(w.device_read(1), 13, "its own number");
        });
        let first = world.read(0, 1);
        let second = world.read(0, 1);
        assert!(12 <= first && first <= second && second <= 13);
        device.join().unwrap();
        assert_eq!(world.read(0, 1), 13, "an old copy");
        assert_eq!((world.contents(0), world.contents(1)), (10, 13));
    });
}

#[test]
fn a_read_races_a_write_of_another_cpu() {
    model(3, |world| {
        let cpu = meanwhile(&world, |w| w.cpu(1, 1));
        let first = world.read(0, 1);
        assert!([11, 12].contains(&first), "{first}");
        cpu.join().unwrap();
        assert_eq!((world.read(0, 1), world.device_read(1)), (12, 12));
        assert_eq!(world.contents(1), 12);
    });
}

#[test]
fn both_sides_write_a_duplicate() {
    model(3, |world| {
        assert_eq!((world.read(0, 1), world.device_read(1)), (11, 11));
        let device = meanwhile(&world, |w| {
            w.device(1);
            assert!(w.device_read(1) >= 12);
        });
        world.cpu(0, 1);
        assert!(world.read(0, 1) >= 12);
        device.join().unwrap();
        assert_eq!((world.read(0, 1), world.contents(1)), (13, 13));
    });
}

#[test]
#[ignore = "takes a minute; tests/proof/loom runs it"]
fn a_duplicate_is_evicted_while_both_sides_write() {
    model(2, |world| {
        assert_eq!((world.read(0, 1), world.device_read(1)), (11, 11));
        let device = meanwhile(&world, |w| w.device(1));
        // Frame 1 belongs to the page, which has been cut out of its folio.
        let evictor = meanwhile(&world, |w| w.evict(1));
        world.cpu(0, 1);
        device.join().unwrap();
        evictor.join().unwrap();
        assert_eq!((world.read(0, 1), world.contents(1)), (13, 13));
        assert_eq!(world.contents(0), 10);
    });
}

#[test]
#[ignore = "takes a minute; tests/proof/loom runs it"]
fn a_read_races_a_free_and_an_eviction() {
    model(2, |world| {
        let free = meanwhile(&world, |w| w.free(1));
        let evictor = meanwhile(&world, |w| w.evict(0));
        let seen = world.read(0, 1);
        assert!([11, 0].contains(&seen), "{seen}");
        free.join().unwrap();
        evictor.join().unwrap();
        assert_eq!((world.read(0, 1), world.contents(0)), (0, 10));
    });
}

#[test]
fn a_pin_ends_a_duplicate_that_a_device_reads() {
    model(3, |world| {
        assert_eq!(world.read(0, 1), 11);
        let device = meanwhile(&world, |w| {
            assert_eq!(w.device_read(1), 11);
        });
        world.pin(1);
        let it = *world.page(1);
        assert!(it.present && !it.protected);
        world.table.unpin(Page(1));
        device.join().unwrap();
        assert_eq!((world.contents(0), world.contents(1)), (10, 11));
    });
}
