//! Memory shared with others, and copies that a guest makes of it (6, 7, 10, 11, 13, 16, 29).

use hmm_backend::pages::Permission;
use std::os::unix::fs::FileExt;

use hmm_backend::Error;
use hmmvisor_testkit::accel::OP_FILL;
use hmmvisor_testkit::{
    Engine, GuestError, Residency, TestVm, WayPoint, address, each_engine, snapshot,
};

use crate::{
    Kind, LARGE, N, START, WORDS, device_verifies, each_kind, filled, guest_copies, migrate, seen,
};

/// Shared memory, two scripted devices and an accelerator of private memory.
fn sharing(engine: Engine) -> TestVm {
    let builder = TestVm::builder().engine(engine).shared(LARGE);
    builder.scripted(N).scripted(N).accelerator(N).start()
}

/// A word of shared memory as another process sees it, through the file.
fn through_file(vm: &TestVm, page: u32, word: u32) -> u64 {
    let (file, pages) = vm.backend().shared_memory().unwrap();
    let mut bytes = [0; 8];
    let offset = u64::from(page - pages.start.0) * 4096 + u64::from(word) * 8;
    file.read_exact_at(&mut bytes, offset).unwrap();
    u64::from_le_bytes(bytes)
}

/// Below a guest, all that remains of a fork is the copy that the guest makes.
#[test]
fn t06_anon_write_child() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        for (size, resident) in [(8, false), (8, true), (LARGE, false), (LARGE, true)] {
            let vm = kind.machines(engine, &[2 * LARGE], 2 * LARGE);
            let (parent, child) = (0, LARGE);
            vm.vcpu(0).fill(0..size, START).wait()?;
            if resident {
                vm.to_device(0, 0..size);
            }
            // Both see the same; the child's device writes to the child's copy.
            vm.vcpu(0).set_read_only(0..size).wait()?;
            guest_copies(&vm, parent, child, 8)?;
            for page in 0..8 {
                let copy = vm.device(0).add((child + page, 1), 1);
                assert_eq!(copy, Ok(filled(parent, page, 1)));
            }
            vm.vcpu(1).verify(0..size, START).wait()?;
            device_verifies(&vm, 0, 0, 0..8);
            for page in 0..8 {
                let copy = vm.vcpu(1).read((child + page, 1)).wait()?;
                assert_eq!(copy, filled(parent, page, 1) + 1);
            }
        }
        Ok(())
    })
}

#[test]
fn t07_anon_write_child_shared() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = sharing(engine);
        let first = vm.shared().start.0;
        vm.vcpu(0).fill(vm.shared(), START).wait()?;
        for page in first..first + 8 {
            // One device writes; the other one, vCPUs, and processes that have the file open see it.
            vm.device(0).write((page, 1), 5).unwrap();
            assert_eq!(vm.device(1).add((page, 1), 1), Ok(5));
            assert_eq!(vm.vcpu(0).fetch_add((page, 1), 1).wait()?, 6);
            assert_eq!(through_file(&vm, page, 1), 7);
            assert_eq!(vm.device(0).read((page, 1)), Ok(7));
            assert_eq!(through_file(&vm, page, 2), filled(first, page, 2));
        }
        // A real accelerator, whose queue is in shared memory, too.
        let (target, n) = (address(first + 8), 8 * 512);
        vm.vcpu(1)
            .submit(2, OP_FILL, &[target, n, START, 1])
            .wait()?;
        vm.vcpu(0).verify(first + 8..first + 16, START).wait()?;
        assert_eq!(
            through_file(&vm, first + 9, 3),
            filled(first + 8, first + 9, 3)
        );
        assert_eq!(vm.stats().pages_to_device(), 0);
        Ok(())
    })
}

#[test]
fn t10_file_read() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = sharing(engine);
        let first = vm.shared().start.0;
        let (file, _) = vm.backend().shared_memory().unwrap();
        for page in 0..N {
            for word in WORDS {
                let offset = u64::from(page) * 4096 + u64::from(word) * 8;
                let bytes = filled(0, page, word).to_le_bytes();
                file.write_all_at(&bytes, offset).unwrap();
            }
        }
        device_verifies(&vm, 0, first, first..first + N);
        device_verifies(&vm, 1, first, first..first + N);
        assert_eq!(vm.residency(first), Residency::System);
        Ok(())
    })
}

#[test]
fn t11_file_write() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = sharing(engine);
        let first = vm.shared().start.0;
        for page in first..first + N {
            let value = filled(first, page, 4);
            vm.device(0).write((page, 4), value).unwrap();
            assert_eq!(vm.vcpu(0).read((page, 4)).wait()?, value);
            assert_eq!(through_file(&vm, page, 4), value);
        }
        assert_eq!(vm.stats().pages_to_device(), 0);
        Ok(())
    })
}

/// A private copy of a file's pages is memory like any other.
#[test]
fn t13_migrate_file_private() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = sharing(engine);
        let first = vm.shared().start.0;
        vm.vcpu(0).fill(first..first + 8, START).wait()?;
        guest_copies(&vm, first, 0, 8)?;
        assert_eq!(migrate(&vm, 0, 0..8), 8);
        device_verifies(&vm, 0, 0, 0..8);
        vm.device(0).write((3, 1), 0).unwrap();
        assert_eq!(through_file(&vm, first + 3, 1), filled(0, 3, 1));
        Ok(())
    })
}

#[test]
fn t16_migrate_shared() -> Result<(), GuestError> {
    each_engine(|engine| {
        let builder = TestVm::builder().engine(engine).shared(LARGE);
        let vm = builder.scripted(LARGE).coherent(LARGE).start();
        let shared = vm.shared();
        vm.vcpu(0).fill(shared, START).wait()?;
        for device in [0, 1] {
            assert_eq!(migrate(&vm, device, shared.start.0..shared.end.0), 0);
            assert_eq!(vm.device(device).reached(WayPoint::ToDeviceEntry), 0);
            assert_eq!(
                vm.snapshot(device, shared),
                vec![snapshot::WRITE; LARGE as usize]
            );
        }
        let refused = vm.backend().set_permission(shared, Permission::ReadOnly);
        assert!(matches!(refused, Err(Error::Shared(_))), "{refused:?}");
        vm.vcpu(1).verify(shared, START).wait()
    })
}

/// The guest copies pages out of device memory.
#[test]
fn t29_hmm_cow_in_device() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, N);
        vm.vcpu(0).fill(0..8, START).wait()?;
        vm.to_device(0, 0..8);
        guest_copies(&vm, 0, 100, 8)?;
        for page in 0..8 {
            // Coherent pages are copied straight from device memory, private ones come back first.
            let source = match kind {
                Kind::Private => snapshot::WRITE,
                Kind::Coherent => kind.local() | snapshot::WRITE,
            };
            assert_eq!(seen(&vm, 0, page), source);
            assert_eq!(seen(&vm, 0, 100 + page), snapshot::WRITE);
            for word in WORDS {
                let copy = vm.vcpu(1).read((100 + page, word)).wait()?;
                assert_eq!(copy, filled(0, page, word));
            }
        }
        vm.vcpu(1).verify(0..8, START).wait()
    })
}
