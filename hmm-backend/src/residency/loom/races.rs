//! Races between two or three threads, and what must be true afterwards.

use super::*;

#[test]
fn two_cpus_fault_on_one_page() {
    model(3, |world| {
        let cpu = meanwhile(&world, |w| w.cpu(1, 1));
        world.cpu(0, 1);
        cpu.join().unwrap();
        assert_eq!((world.contents(0), world.contents(1)), (10, 13));
        assert_eq!(*world.freed.lock().unwrap(), 1, "one winner");
    });
}

#[test]
fn two_cpus_fault_on_two_pages_of_one_folio() {
    model(3, |world| {
        let cpu = meanwhile(&world, |w| w.cpu(1, 1));
        world.cpu(0, 0);
        cpu.join().unwrap();
        assert_eq!((world.contents(0), world.contents(1)), (11, 12));
        assert_eq!(*world.freed.lock().unwrap(), 2);
    });
}

#[test]
fn a_fault_races_a_migration_to_the_device() {
    model(3, |world| {
        world.cpu(0, 0);
        let device = meanwhile(&world, |w| w.to_device(0));
        world.cpu(0, 0);
        device.join().unwrap();
        assert_eq!(world.contents(0), 12);
    });
}

#[test]
fn a_fault_races_a_free() {
    model(3, |world| {
        let free = meanwhile(&world, |w| w.free(1));
        world.cpu(0, 1);
        free.join().unwrap();
        // The increment came before the free (0) or after it (1). The old contents must not survive the free.
        assert!([0, 1].contains(&world.contents(1)), "{}", world.contents(1));
        assert_eq!(world.contents(0), 10);
    });
}

#[test]
fn a_fault_races_an_eviction_of_the_folio() {
    model(3, |world| {
        let evictor = meanwhile(&world, |w| w.evict(0));
        world.cpu(0, 1);
        evictor.join().unwrap();
        assert_eq!((world.contents(0), world.contents(1)), (10, 12));
    });
}

/// Page 1 leaves its frame, page 0 may get the frame, and an eviction that was chosen by this frame still runs.
#[test]
fn an_eviction_finds_the_frame_reused() {
    model(3, |world| {
        world.cpu(0, 0);
        let evictor = meanwhile(&world, |w| w.evict(1));
        let device = meanwhile(&world, |w| w.to_device(0));
        world.cpu(0, 1);
        device.join().unwrap();
        evictor.join().unwrap();
        assert_eq!((world.contents(0), world.contents(1)), (11, 12));
    });
}

#[test]
fn a_fault_a_migration_and_a_free_race() {
    model(3, |world| {
        world.cpu(0, 0);
        let device = meanwhile(&world, |w| w.to_device(0));
        let free = meanwhile(&world, |w| w.free(0));
        world.cpu(0, 0);
        device.join().unwrap();
        free.join().unwrap();
        assert!([0, 1].contains(&world.contents(0)), "{}", world.contents(0));
    });
}

/// Two of the threads play a second part after their first one: with fewer threads, more preemptions can be tried.
#[test]
fn two_faults_a_migration_a_free_and_an_eviction_take_turns_on_one_page() {
    model(2, |world| {
        let cpu = meanwhile(&world, |w| {
            w.cpu(1, 0);
            w.evict(0);
        });
        let free = meanwhile(&world, |w| w.free(0));
        world.to_device(0);
        world.cpu(0, 0);
        cpu.join().unwrap();
        free.join().unwrap();
        assert!(world.contents(0) <= 2, "{}", world.contents(0));
        assert_eq!(world.contents(1), 11);
    });
}

#[test]
fn two_faults_a_migration_a_free_and_an_eviction_take_turns_on_two_pages() {
    model(2, |world| {
        let evictor = meanwhile(&world, |w| {
            w.evict(0);
            w.to_device(1);
        });
        let cpu = meanwhile(&world, |w| w.cpu(1, 1));
        world.free(0);
        world.cpu(0, 0);
        cpu.join().unwrap();
        evictor.join().unwrap();
        assert_eq!((world.contents(0), world.contents(1)), (1, 12));
    });
}

#[test]
fn a_fault_a_migration_and_an_eviction_race_for_one_page() {
    model(2, |world| {
        let device = meanwhile(&world, |w| w.to_device(0));
        let evictor = meanwhile(&world, |w| w.evict(0));
        world.cpu(0, 0);
        device.join().unwrap();
        evictor.join().unwrap();
        assert_eq!((world.contents(0), world.contents(1)), (11, 11));
    });
}

#[test]
fn a_pinned_page_never_leaves() {
    model(3, |world| {
        world.cpu(0, 0);
        let device = meanwhile(&world, |w| w.to_device(0));
        let free = meanwhile(&world, |w| w.free(1));
        world.pin(0);
        assert!(world.page(0).present);
        assert_eq!(world.page(0).value, 11);
        world.table.unpin(Page(0));
        device.join().unwrap();
        free.join().unwrap();
        assert_eq!((world.contents(0), world.contents(1)), (11, 0));
    });
}

/// A pin takes a page out of the device's memory, or out of a folio that an eviction has brought back as a whole.
#[test]
fn a_pin_races_an_eviction_and_a_migration() {
    model(2, |world| {
        let evictor = meanwhile(&world, |w| w.evict(0));
        let device = meanwhile(&world, |w| w.to_device(1));
        world.pin(1);
        assert!(world.access(1), "pinned pages are there");
        assert!(world.access(1), "and stay");
        world.table.unpin(Page(1));
        evictor.join().unwrap();
        device.join().unwrap();
        assert_eq!((world.contents(0), world.contents(1)), (10, 13));
    });
}

#[test]
fn a_free_leaves_a_pinned_page_alone() {
    model(3, |world| {
        world.pin(0);
        let free = meanwhile(&world, |w| w.free(0));
        assert!(world.access(0), "pinned pages are there");
        assert!(world.access(0), "and stay");
        world.table.unpin(Page(0));
        free.join().unwrap();
        assert!(
            [0, 12].contains(&world.contents(0)),
            "{}",
            world.contents(0)
        );
    });
}

#[test]
fn a_device_access_races_a_fault() {
    model(3, |world| {
        let device = meanwhile(&world, |w| w.device(1));
        world.cpu(0, 1);
        device.join().unwrap();
        assert_eq!((world.contents(0), world.contents(1)), (10, 13));
    });
}

/// The device has a translation before the race. The translation must be removed when the page moves.
#[test]
fn a_device_access_races_a_fault_and_an_eviction() {
    model(2, |world| {
        world.device(1);
        let evictor = meanwhile(&world, |w| w.evict(0));
        let device = meanwhile(&world, |w| w.device(1));
        world.cpu(0, 1);
        device.join().unwrap();
        evictor.join().unwrap();
        assert_eq!((world.contents(0), world.contents(1)), (10, 14));
    });
}

#[test]
fn a_device_access_races_a_migration_and_a_free() {
    model(2, |world| {
        world.cpu(0, 0);
        let migration = meanwhile(&world, |w| w.to_device(0));
        let free = meanwhile(&world, |w| w.free(0));
        world.device(0);
        migration.join().unwrap();
        free.join().unwrap();
        assert!([0, 1].contains(&world.contents(0)), "{}", world.contents(0));
    });
}

#[test]
fn a_fault_races_a_pass_to_another_device() {
    model(3, |world| {
        // A frame for the page to go to.
        world.free(0);
        let device = meanwhile(&world, |w| w.pass(1));
        world.cpu(0, 1);
        device.join().unwrap();
        assert_eq!((world.contents(0), world.contents(1)), (0, 12));
    });
}

/// The page goes to the other device and back, so that an eviction that was chosen by its frame finds another state.
#[test]
fn a_fault_an_eviction_and_two_passes_race() {
    model(2, |world| {
        world.free(0);
        let evictor = meanwhile(&world, |w| w.evict(1));
        let device = meanwhile(&world, |w| {
            w.pass(1);
            w.pass(1);
        });
        world.cpu(0, 1);
        device.join().unwrap();
        evictor.join().unwrap();
        assert_eq!((world.contents(0), world.contents(1)), (0, 12));
    });
}

/// The device has a translation before the race, which must be gone before the contents are read.
#[test]
fn a_device_access_races_two_passes() {
    model(2, |world| {
        world.free(0);
        world.device(1);
        let pass = meanwhile(&world, |w| w.pass(1));
        let device = meanwhile(&world, |w| w.device(1));
        world.pass(1);
        device.join().unwrap();
        pass.join().unwrap();
        assert_eq!((world.contents(0), world.contents(1)), (0, 13));
    });
}

/// Two single pages become one folio while the device reaches the second one.
#[test]
fn a_device_access_races_the_joining_of_two_pages() {
    model(3, |world| {
        world.cpu(0, 0);
        world.cpu(0, 1);
        let migration = meanwhile(&world, |w| w.to_device_together());
        world.device(1);
        migration.join().unwrap();
        assert_eq!((world.contents(0), world.contents(1)), (11, 13));
    });
}

/// The pages of a folio in system memory stay together on their way to the device: only the head's entry changes.
#[test]
fn a_device_access_and_a_fault_race_a_migration_of_the_folio() {
    model(2, |world| {
        world.evict(0);
        let migration = meanwhile(&world, |w| w.to_device_together());
        let device = meanwhile(&world, |w| w.device(1));
        world.cpu(0, 1);
        migration.join().unwrap();
        device.join().unwrap();
        assert_eq!((world.contents(0), world.contents(1)), (10, 13));
    });
}

/// A page of the folio is freed, so the folio is cut, while it migrates as a whole.
#[test]
fn a_free_and_a_fault_race_a_migration_of_the_folio() {
    model(2, |world| {
        world.evict(0);
        let migration = meanwhile(&world, |w| w.to_device_together());
        let free = meanwhile(&world, |w| w.free(1));
        world.cpu(0, 0);
        migration.join().unwrap();
        free.join().unwrap();
        assert_eq!((world.contents(0), world.contents(1)), (11, 0));
    });
}
