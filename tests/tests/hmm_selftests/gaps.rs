//! Tests that the kernel's selftest does not have: many CPUs, races with frees and pins, ping-pong, cookies.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use hmmvisor_testkit::{
    CheckedDriver, GuestError, Random, Residency, TestVm, WayPoint, each_engine, pages,
};

use crate::{Kind, LARGE, N, START, all_freed, device_verifies, each_kind, migrate};

#[test]
fn eight_vcpus_fault_on_one_page() -> Result<(), GuestError> {
    each_engine(|engine| {
        let builder = TestVm::builder().engine(engine).vcpus(8);
        let vm = builder.scripted(N).start();
        for round in 0..10 {
            vm.vcpu(0).write(3, round).wait()?;
            vm.to_device(0, 3);
            let entered = vm.device(0).reached(WayPoint::ToSystemEntry);
            let gate = vm.device(0).hold(WayPoint::ToSystemAfterCopy);
            let reads: Vec<_> = (0..8).map(|cpu| vm.vcpu(cpu).fetch_add(3, 100)).collect();
            gate.wait_arrived();
            assert!(reads.iter().all(|read| !read.is_done()));
            gate.release();
            let mut seen = Vec::new();
            for read in reads {
                seen.push(read.wait()?);
            }
            // Each adds to what the one before has left.
            seen.sort();
            let expected: Vec<u64> = (0..8).map(|cpu| round + cpu * 100).collect();
            assert_eq!(seen, expected);
            // One winner: the driver was called once.
            let entered = vm.device(0).reached(WayPoint::ToSystemEntry) - entered;
            assert_eq!(entered, 1);
        }
        Ok(())
    })
}

#[test]
fn two_devices_and_a_vcpu_ping_pong_with_progress() -> Result<(), GuestError> {
    each_engine(|engine| {
        for kind in [Kind::Private, Kind::Coherent] {
            let builder = TestVm::builder()
                .engine(engine)
                .policy("on-demand+timeslice:min=100us");
            let vm = match kind {
                Kind::Private => builder.scripted(N).scripted(N),
                Kind::Coherent => builder.coherent(N).coherent(N),
            };
            let vm = vm.start();
            let adding = vm.vcpu(0).add_until_stopped(0..2, 1);
            std::thread::scope(|scope| {
                for device in [vm.device(0), vm.device(1)] {
                    scope.spawn(move || {
                        for round in 0..100 {
                            device.add(round % 2, 1 << 32).unwrap();
                        }
                    });
                }
                adding.wait_rounds(5);
            });
            // The devices have finished; so does the vCPU, which has been adding all the time.
            adding.wait_rounds(5);
            let rounds = adding.stop()?;
            for page in [0, 1] {
                assert_eq!(vm.vcpu(1).read(page).wait()?, rounds + (100 << 32));
            }
        }
        Ok(())
    })
}

#[test]
fn a_free_during_a_migration_waits_and_comes_once() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, N);
        let device = vm.device(0);
        for point in [
            WayPoint::ToDeviceBeforeCopy,
            WayPoint::ToDeviceAfterCopy,
            WayPoint::ToDeviceAfterCommit,
            WayPoint::ToSystemBeforeCopy,
            WayPoint::ToSystemAfterCopy,
            WayPoint::ToSystemAfterCommit,
        ] {
            vm.vcpu(0).fill(0..8, START).wait()?;
            let back = point >= WayPoint::ToSystemEntry;
            if back {
                vm.to_device(0, 0..8);
            }
            let gate = device.hold(point);
            let moving = match back {
                true => vm.begin_to_system(0..8),
                false => vm.begin_to_device(0, 0..8),
            };
            gate.wait_arrived();
            let notices = device.reached(WayPoint::PageFree);
            let free = vm.vcpu(0).free(0..8);
            assert!(!free.is_done() && !moving.is_done(), "{point:?}");
            assert_eq!(device.reached(WayPoint::PageFree), notices, "not in flight");
            gate.release();
            assert_eq!((moving.wait(), free.wait()?), (8, 8), "{point:?}");
            assert_eq!(device.reached(WayPoint::PageFree), notices + 1, "{point:?}");
            assert_eq!((device.pages(), device.script().live()), (0, 0));
            assert_eq!(vm.vcpu(1).checksum(0..8).wait()?, 0);
        }
        Ok(())
    })
}

#[test]
fn a_cpu_touches_a_hole_that_is_being_migrated() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, N);
        for point in [
            WayPoint::ToDeviceBeforeCopy,
            WayPoint::ToDeviceAfterCopy,
            WayPoint::ToDeviceAfterCommit,
        ] {
            let gate = vm.device(0).hold(point);
            let moving = vm.begin_to_device(0, 0..8);
            gate.wait_arrived();
            let add = vm.vcpu(0).fetch_add(3, 5);
            // Whether it gets its page now or later, the page is filled once.
            let early = add.is_done();
            assert!(!early || kind == Kind::Coherent, "{point:?}");
            gate.release();
            assert_eq!((moving.wait(), add.wait()?), (8, 0), "{point:?}");
            assert_eq!(vm.device(0).add(3, 1), Ok(5));
            assert_eq!(vm.vcpu(1).read(3).wait()?, 6);
            assert_eq!(vm.device(0).read(4), Ok(0));
            assert_eq!(vm.vcpu(0).free(0..8).wait()?, 8);
        }
        all_freed(&vm);
        Ok(())
    })
}

#[test]
fn cookies_are_stable_from_allocation_to_free() -> Result<(), GuestError> {
    each_engine(|engine| {
        let books = Arc::new(CheckedDriver::default());
        let builder = TestVm::builder().engine(engine);
        let vm = builder.driver(LARGE, books.clone()).start();
        let mut random = Random(11);
        vm.vcpu(0).fill(0..LARGE, START).wait()?;
        vm.to_device(0, 0..LARGE);
        for _ in 0..150 {
            let page = random.below(LARGE.into()) as u32;
            let some = page..LARGE.min(page + 1 + random.below(40) as u32);
            match random.below(4) {
                0 => drop(migrate(&vm, 0, some)),
                1 => vm.to_system(some),
                2 => drop(vm.vcpu(0).free(some).wait()?),
                _ => drop(vm.vcpu(1).read(page).wait()?),
            }
        }
        // Each frame in use belongs to a folio that the driver knows, and no other does.
        vm.settle(0..LARGE);
        vm.wait_until("the books to balance", || {
            books
                .live_folios()
                .iter()
                .map(|(_, order)| 1 << order)
                .sum::<u32>()
                == vm.device(0).pages()
        });
        assert!(vm.device(0).unplug().wait().is_ok());
        assert_eq!(books.live(), 0);
        books.assert_clean();
        assert!(books.freed() > 20, "folios were cut");
        Ok(())
    })
}

#[test]
fn a_pin_races_migrations() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, N);
        let rounds = 200;
        std::thread::scope(|scope| {
            let pinner = scope.spawn(|| {
                for round in 0..rounds {
                    let page = round % 4;
                    let pinned = vm.backend().pin(pages(page..page + 1)).unwrap();
                    // As long as it is pinned, it is here, and a device's DMA would find it.
                    let word = vm.host_word(page);
                    let old = word.load(SeqCst);
                    std::thread::yield_now();
                    let residency = vm.backend().word(pinned.range().start).unwrap();
                    assert_eq!(residency.residency(), Residency::System);
                    word.store(old + 1, SeqCst);
                }
            });
            while !pinner.is_finished() {
                migrate(&vm, 0, 0..4);
                std::thread::yield_now();
            }
        });
        for page in 0..4 {
            assert_eq!(vm.vcpu(0).read(page).wait()?, u64::from(rounds / 4));
        }
        Ok(())
    })
}

#[test]
fn whoever_gets_a_page_keeps_it_for_the_timeslice() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder()
            .engine(engine)
            .policy("on-demand+timeslice:min=20ms")
            .scripted(N)
            .start();
        let put_off = || vm.stats().counters.faults_deferred;
        let mut rounds = 0;
        let (mut devices, mut cpus) = (0, 0);
        // On a busy machine the time may be over before the other one comes.
        vm.wait_until("faults of both that are put off", || {
            let before = put_off();
            assert_eq!(vm.device(0).add(0, 1), Ok(2 * rounds));
            let between = put_off();
            let old = vm.vcpu(0).fetch_add(0, 1).wait();
            assert_eq!(old, Ok(2 * rounds + 1));
            devices += between - before;
            cpus += put_off() - between;
            rounds += 1;
            devices > 0 && cpus > 0
        });
        Ok(())
    })
}

#[test]
fn device_memory_takes_no_guest_addresses() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        // 3 GiB of device memory beside 2 MiB of guest memory.
        let gib = 1 << 18;
        let vm = kind.machines(engine, &[gib, gib, gib], LARGE);
        assert_eq!(vm.backend().pages(), LARGE);
        assert_eq!(vm.stats().device_pages_capacity, 3 << 18);
        vm.vcpu(0).fill(0..N, START).wait()?;
        for device in 0..3 {
            vm.to_device(device, 0..N);
            device_verifies(&vm, device, 0, 0..N);
            vm.to_system(0..N);
        }
        vm.vcpu(1).verify(0..N, START).wait()
    })
}
