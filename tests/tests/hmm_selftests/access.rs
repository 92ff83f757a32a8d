//! Accesses of devices to memory of each kind and state (1 to 5, 8, 19 to 21, 23, 39).

use hmm_backend::Error;
use hmm_backend::pages::Page;
use hmmvisor_testkit::{
    AccessRefused, GuestError, Residency, TestVm, WayPoint, each_engine, pages, snapshot,
};

use crate::{
    Kind, LARGE, N, START, device_finds_zeros, device_verifies, each_kind, filled, free, migrate,
    seen,
};

#[test]
fn t01_open_close() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, N);
        let device = vm.device(0);
        assert_eq!(device.read(0), Ok(0));
        assert!(device.unplug().wait().is_ok());
        assert_eq!((device.pages(), device.script().live()), (0, 0));
        // Nothing goes to or through a device that is closed.
        let moved = vm.backend().migrate_to_device(device.id(), pages(0..1));
        assert!(matches!(moved, Err(Error::NoDevice(_))), "{moved:?}");
        assert!(device.read(0).is_err());
        vm.vcpu(0).fill(0..N, START).wait()?;
        vm.vcpu(1).verify(0..N, START).wait()
    })
}

#[test]
fn t02_anon_read() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, N);
        let cpu = vm.vcpu(0);
        cpu.fill(2..N, START).wait()?;
        cpu.set_read_only(0..N).wait()?;
        device_finds_zeros(&vm, 0, 0..2);
        device_verifies(&vm, 0, 2, 2..N);
        // Private memory: the pages have come. Coherent: they are reached where they are.
        assert_eq!(vm.device(0).holds(0..N), kind == Kind::Private);
        assert_eq!(cpu.checksum(0..2).wait()?, 0);
        cpu.verify(2..N, START).wait()
    })
}

#[test]
fn t03_anon_read_prot() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, N);
        vm.vcpu(0).fill(0..4, START).wait()?;
        vm.backend().memory_failure(Page(2)).unwrap();
        // Nothing can be read there, and nothing behind the end.
        for page in [2, vm.pages(), u32::MAX - 1] {
            for refused in [vm.device(0).read(page), vm.device(0).add(page, 1)] {
                assert!(
                    matches!(refused, Err(AccessRefused::Failed(_))),
                    "{page:#x}"
                );
            }
        }
        let lost = vm.vcpu(0).read(2).wait();
        assert_eq!(lost, Err(GuestError::Lost { page: 2 }));
        // Nothing else has changed.
        device_verifies(&vm, 0, 0, 0..2);
        device_verifies(&vm, 0, 0, 3..4);
        assert_eq!(free(&vm, 2..3)?, 1);
        assert_eq!(vm.device(0).read(2), Ok(0));
        Ok(())
    })
}

#[test]
fn t04_anon_write() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, N);
        for page in 0..N {
            vm.device(0).write((page, 9), filled(0, page, 9)).unwrap();
        }
        for page in 0..N {
            assert_eq!(
                vm.vcpu(page % 2).read((page, 9)).wait()?,
                filled(0, page, 9)
            );
            assert_eq!(vm.vcpu(page % 2).read((page, 8)).wait()?, 0);
        }
        Ok(())
    })
}

#[test]
fn t05_anon_write_prot() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, N);
        let (cpu, device) = (vm.vcpu(0), vm.device(0));
        cpu.set_read_only(0..2).wait()?;
        assert_eq!(device.read(0), Ok(0));
        // A page in device memory, and an untouched one.
        for page in [0, 1] {
            assert_eq!(device.write(page, 1), Err(AccessRefused::Permission));
            assert_eq!(vm.vcpu(1).read(page).wait()?, 0);
        }
        cpu.set_writable(0..2).wait()?;
        for page in [0, 1] {
            assert_eq!(device.write(page, 5), Ok(()));
            assert_eq!(vm.vcpu(1).read(page).wait()?, 5);
        }
        Ok(())
    })
}

#[test]
fn t08_anon_write_huge() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, LARGE);
        vm.to_device(0, 0..LARGE);
        let whole = kind.local() | snapshot::WRITE | snapshot::LARGE;
        for page in 0..LARGE {
            vm.device(0).write((page, 3), filled(0, page, 3)).unwrap();
            assert_eq!(seen(&vm, 0, page), whole);
        }
        assert_eq!(vm.device(0).script().live(), 1, "one folio");
        for page in 0..LARGE {
            assert_eq!(vm.vcpu(0).read((page, 3)).wait()?, filled(0, page, 3));
        }
        Ok(())
    })
}

#[test]
fn t19_anon_read_multiple() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, N);
        for round in 0..10 {
            // Addresses and frames are used again; what was there before is never seen.
            device_finds_zeros(&vm, 0, 0..4);
            vm.vcpu(0).fill(0..4, START + round).wait()?;
            for page in 0..4 {
                assert_eq!(vm.device(0).read((page, 1)), Ok(filled(0, page, 1) + round));
            }
            assert_eq!(free(&vm, 0..4)?, 4);
        }
        Ok(())
    })
}

#[test]
fn t20_anon_teardown() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, N);
        let device = vm.device(0);
        for _ in 0..10 {
            vm.vcpu(0).fill(0..N, START).wait()?;
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    let read = |page| device.read((page, 1)).unwrap();
                    (0..N).map(read).collect::<Vec<_>>()
                });
                let freed = vm.vcpu(0).free(N / 2..N);
                let read = reader.join().unwrap();
                assert!(freed.wait().is_ok());
                for (page, found) in (0..).zip(read) {
                    let right = found == filled(0, page, 1);
                    assert!(
                        right || found == 0 && page >= N / 2,
                        "page {page:#x}: {found}"
                    );
                }
            });
            device_verifies(&vm, 0, 0, 0..N / 2);
            device_finds_zeros(&vm, 0, N / 2..N);
        }
        Ok(())
    })
}

/// Pages that are pinned: they are reported with their permission and reached in place.
#[test]
fn t21_mixedmap() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, N);
        vm.vcpu(0).write(1, 11).wait()?;
        vm.vcpu(0).set_read_only(1).wait()?;
        let pinned = vm.backend().pin(pages(0..2)).unwrap();
        assert_eq!(migrate(&vm, 0, 0..2), 0);
        assert_eq!(vm.snapshot(0, 0..2), [snapshot::WRITE, snapshot::READ]);
        assert_eq!(vm.device(0).read(1), Ok(11));
        assert_eq!(vm.device(0).write(1, 0), Err(AccessRefused::Permission));
        assert_eq!(vm.residency(1), Residency::System);
        drop(pinned);
        assert_eq!(migrate(&vm, 0, 0..2), 2);
        Ok(())
    })
}

#[test]
fn t23_compound() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, LARGE);
        vm.vcpu(0).fill(0..LARGE, START).wait()?;
        vm.to_device(0, 0..LARGE);
        let all = |byte| {
            let bytes = vm.snapshot(0, 0..LARGE);
            assert_eq!(
                bytes,
                vec![kind.local() | snapshot::LARGE | byte; LARGE as usize]
            );
        };
        all(snapshot::WRITE);
        vm.vcpu(0).set_read_only(0..LARGE).wait()?;
        all(snapshot::READ);
        assert_eq!(vm.device(0).write(77, 0), Err(AccessRefused::Permission));
        device_verifies(&vm, 0, 0, 70..80);
        Ok(())
    })
}

/// Another device's driver supplies the missing page, slowly.
#[test]
fn t39_userfaultfd_read() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder()
            .engine(engine)
            .scripted(N)
            .scripted(N)
            .start();
        vm.vcpu(0).fill(0..N, START).wait()?;
        vm.to_device(0, 0..N);
        let gate = vm.device(0).hold_when(WayPoint::Flush, |it| it.contains(5));
        let read = vm.device(1).begin_read(5);
        gate.wait_arrived();
        // The device that waits holds nothing that others need.
        vm.vcpu(0).write(40, 4).wait()?;
        vm.vcpu(1).set_read_only(100..110).wait()?;
        assert_eq!(free(&vm, 41..42)?, 1);
        assert!(!read.is_done());
        gate.release();
        assert_eq!(read.wait(), Ok(filled(0, 5, 0)));
        device_verifies(&vm, 1, 0, 0..40);
        device_verifies(&vm, 1, 0, 42..N);
        Ok(())
    })
}
