//! Migrations there and back (12, 14, 15, 17, 18, 22, 24).

use std::sync::Arc;

use hmm_backend::Error;
use hmm_backend::pages::{PAGE_SIZE, Page};
use hmmvisor_testkit::{CheckedDriver, GuestError, Residency, pages, snapshot};

use crate::{Kind, LARGE, N, START, device_verifies, each_kind, filled, free, migrate, seen};

#[test]
fn t12_migrate() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, N);
        vm.vcpu(0).fill(0..N, START).wait()?;
        assert_eq!(migrate(&vm, 0, 0..N), N);
        assert!(vm.device(0).holds(0..N));
        device_verifies(&vm, 0, 0, 0..N);
        // They have been read where they are.
        assert!(vm.device(0).holds(0..N));
        assert_eq!(vm.device(0).script().live(), 1);
        Ok(())
    })
}

#[test]
fn t14_migrate_fault() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        // With frames to spare: a CPU wakes from its fault before the frames of its pages are free, and the next migration
        // would evict others instead.
        let vm = kind.machine(engine, 2 * N);
        vm.vcpu(0).fill(0..N, START).wait()?;
        assert_eq!(migrate(&vm, 0, 0..N), N);
        vm.vcpu(1).verify(0..N / 2, START).wait()?;
        let back = if kind == Kind::Private { N / 2 } else { 0 };
        assert_eq!(vm.device(0).pages(), N - back);
        // The mixed range again: what is there stays there.
        assert_eq!(migrate(&vm, 0, 0..N), back);
        assert!(vm.device(0).holds(0..N));
        device_verifies(&vm, 0, 0, 0..N);
        vm.vcpu(0).verify(0..N, START).wait()
    })
}

#[test]
fn t15_migrate_release() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, N);
        vm.vcpu(0).fill(0..N, START).wait()?;
        vm.to_device(0, 0..N);
        assert!(vm.device(0).unplug().wait().is_ok());
        assert_eq!((vm.device(0).pages(), vm.device(0).script().live()), (0, 0));
        assert!((0..N).all(|page| vm.residency(page) == Residency::System));
        vm.vcpu(0).verify(0..N, START).wait()?;
        // Another device can take its place.
        let next = Arc::new(CheckedDriver::default());
        let memory = u64::from(N) * PAGE_SIZE;
        let id = vm.backend().attach(memory, next.clone()).unwrap();
        let moved = vm.backend().migrate_to_device(id, pages(0..N)).unwrap();
        assert_eq!(moved, u64::from(N));
        vm.vcpu(1).verify(0..N, START).wait()?;
        vm.wait_until("all pages to be back", || next.live() == 0);
        next.assert_clean();
        Ok(())
    })
}

#[test]
fn t17_migrate_mixed() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machines(engine, &[N, N], LARGE);
        // Where there is no memory, the whole request is refused.
        let end = vm.backend().pages();
        let beyond = pages(end - 1..end + 1);
        let moved = vm.backend().migrate_to_device(vm.device(1).id(), beyond);
        assert!(matches!(moved, Err(Error::OutOfRange { .. })), "{moved:?}");
        assert_eq!(vm.residency(end - 1), Residency::Untouched);
        // Lost, untouched, read-only, writable: only what is lost stays.
        let (lost, read_only, writable) = (0, 2, 3);
        vm.vcpu(0).fill(0..4, START).wait()?;
        vm.vcpu(0).free(1).wait()?;
        vm.vcpu(0).set_read_only(read_only).wait()?;
        vm.backend().memory_failure(Page(lost)).unwrap();
        assert_eq!(migrate(&vm, 1, 0..5), 4);
        let local = kind.local();
        assert_eq!(seen(&vm, 1, lost), snapshot::ERROR);
        assert_eq!(seen(&vm, 1, 1), local | snapshot::WRITE);
        assert_eq!(seen(&vm, 1, read_only), local | snapshot::READ);
        assert_eq!(seen(&vm, 1, writable), local | snapshot::WRITE);
        assert_eq!(vm.device(1).read(1), Ok(0));
        device_verifies(&vm, 1, 0, 2..4);
        // Pages in another device's private memory come from there directly; coherent ones are in reach where they are.
        match kind {
            Kind::Private => {
                assert_eq!(migrate(&vm, 0, 0..5), 4);
                assert!(vm.device(0).holds(1..5));
                assert_eq!(vm.stats().pages_between_devices(), 4);
                device_verifies(&vm, 0, 0, 2..4);
            }
            Kind::Coherent => {
                assert_eq!(migrate(&vm, 0, 1..4), 0);
                assert!(vm.device(1).holds(1..4));
            }
        }
        Ok(())
    })
}

#[test]
fn t18_migrate_multiple() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, N);
        for round in 0..10 {
            let start = START + round * 1_000_000;
            vm.vcpu(0).fill(0..N, start).wait()?;
            assert_eq!(migrate(&vm, 0, 0..N), N);
            for page in 0..N {
                let expected = start + u64::from(page) * 512;
                assert_eq!(vm.device(0).read(page), Ok(expected));
            }
            if kind == Kind::Coherent {
                assert_eq!(
                    vm.backend().migrate_to_system(pages(0..N)).unwrap() as u32,
                    N
                );
            }
            vm.vcpu(1).verify(0..N, start).wait()?;
            assert_eq!(vm.device(0).pages(), 0);
            assert_eq!(free(&vm, 0..N)?, N);
        }
        Ok(())
    })
}

#[test]
fn t22_snapshot() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machines(engine, &[N, N], LARGE);
        let (cpu, backend) = (vm.vcpu(0), vm.backend());
        cpu.fill(0..10, START).wait()?;
        backend.memory_failure(Page(0)).unwrap();
        cpu.free(1).wait()?;
        cpu.set_read_only(2).wait()?;
        migrate(&vm, 0, 4..5);
        migrate(&vm, 1, 5..6);
        cpu.set_read_only(6).wait()?;
        migrate(&vm, 0, 6..7);
        vm.device(0).exclusive_add(7, 0).unwrap();
        vm.device(1).exclusive_add(8, 0).unwrap();
        let (read, write) = (snapshot::READ, snapshot::WRITE);
        let expected = [
            snapshot::ERROR,
            snapshot::NONE,
            read,
            write,
            kind.local() | write,
            kind.remote() | write,
            kind.local() | read,
            snapshot::EXCLUSIVE_LOCAL | write,
            snapshot::EXCLUSIVE_REMOTE | write,
            write,
        ];
        vm.settle(0..10);
        assert_eq!(vm.snapshot(0, 0..10), expected);
        let end = vm.backend().pages();
        let beyond = backend.snapshot(vm.device(0).id(), pages(end - 1..end + 1));
        assert!(matches!(beyond, Err(Error::OutOfRange { .. })));
        Ok(())
    })
}

#[test]
fn t24_double_map() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machines(engine, &[N, N], LARGE);
        vm.vcpu(0).fill(0..6, START).wait()?;
        vm.vcpu(0).set_read_only(0..6).wait()?;
        device_verifies(&vm, 0, 0, 0..6);
        device_verifies(&vm, 1, 0, 0..6);
        // Whatever the first one had of them is gone once they are in the second one's memory.
        vm.to_system(0..6);
        vm.to_device(1, 0..6);
        device_verifies(&vm, 0, 0, 0..6);
        device_verifies(&vm, 1, 0, 0..6);
        assert_eq!(vm.vcpu(1).read((3, 3)).wait()?, filled(0, 3, 3));
        Ok(())
    })
}
