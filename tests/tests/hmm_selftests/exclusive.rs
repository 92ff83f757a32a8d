//! Exclusive access and pins (25 to 28).

use std::sync::atomic::Ordering::SeqCst;

use hmmvisor_testkit::{AccessRefused, GuestError, Residency, pages, snapshot};

use crate::{Kind, N, START, each_kind, filled, guest_copies, seen};

const EXCLUSIVE: u8 = snapshot::EXCLUSIVE_LOCAL | snapshot::WRITE;

#[test]
fn t25_exclusive() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, N);
        vm.vcpu(0).fill(0..N, START).wait()?;
        for page in 0..N {
            let old = vm.device(0).exclusive_add(page, 1000);
            assert_eq!(old, Ok(filled(0, page, 0)));
            assert_eq!(seen(&vm, 0, page), EXCLUSIVE);
            // The CPU's access takes it away, and works.
            let old = vm.vcpu(0).fetch_add(page, 1).wait()?;
            assert_eq!(old, filled(0, page, 0) + 1000);
            assert_eq!(seen(&vm, 0, page), snapshot::WRITE);
        }
        // Both at the same word, all the time.
        let adding = vm.vcpu(0).add_until_stopped(0, 1);
        for _ in 0..50 {
            vm.device(0).exclusive_add(0, 1 << 32).unwrap();
            adding.wait_rounds(1);
        }
        let rounds = adding.stop()?;
        let sum = filled(0, 0, 0) + 1001 + rounds + (50 << 32);
        assert_eq!(vm.vcpu(1).read(0).wait()?, sum);
        Ok(())
    })
}

#[test]
fn t26_exclusive_mprotect() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, N);
        let device = vm.device(0);
        for page in 0..4 {
            assert_eq!(device.exclusive_add(page, 3), Ok(0));
        }
        vm.vcpu(0).set_read_only(0..4).wait()?;
        for page in 0..4 {
            assert_eq!(seen(&vm, 0, page), snapshot::READ);
            assert_eq!(device.write(page, 0), Err(AccessRefused::Permission));
            assert_eq!(
                device.exclusive_add(page, 1),
                Err(AccessRefused::Permission)
            );
            assert_eq!(vm.vcpu(0).read(page).wait()?, 3);
        }
        Ok(())
    })
}

/// The guest's copy of an exclusive page is not exclusive, and additions to the two are separate.
#[test]
fn t27_exclusive_cow() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, N);
        let (parent, child) = (0, 100);
        vm.vcpu(0).fill(0..4, START).wait()?;
        for page in 0..4 {
            vm.device(0).exclusive_add(parent + page, 1).unwrap();
        }
        guest_copies(&vm, parent, child, 4)?;
        for page in 0..4 {
            assert_eq!(seen(&vm, 0, parent + page), snapshot::WRITE);
            assert_eq!(seen(&vm, 0, child + page), snapshot::WRITE);
            vm.vcpu(0).fetch_add(parent + page, 10).wait()?;
            vm.vcpu(1).fetch_add(child + page, 20).wait()?;
            vm.device(0).exclusive_add(parent + page, 100).unwrap();
            vm.device(0).exclusive_add(child + page, 200).unwrap();
            let base = filled(parent, page, 0) + 1;
            assert_eq!(vm.vcpu(1).read(parent + page).wait()?, base + 110);
            assert_eq!(vm.vcpu(0).read(child + page).wait()?, base + 220);
        }
        Ok(())
    })
}

/// The VMM looks at pages now and then, or pins them for long.
#[test]
fn t28_hmm_gup_test() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, N);
        vm.vcpu(0).fill(0..4, START).wait()?;
        vm.to_device(0, 0..4);
        let on_device = kind.local() | snapshot::WRITE;
        let touched = match kind {
            Kind::Private => snapshot::WRITE,
            Kind::Coherent => on_device,
        };
        for page in [0, 1] {
            assert_eq!(vm.host_word((page, 2)).load(SeqCst), filled(0, page, 2));
            assert_eq!(seen(&vm, 0, page), touched);
        }
        let pinned = vm.backend().pin(pages(2..4)).unwrap();
        for page in [2, 3] {
            assert_eq!(vm.residency(page), Residency::System);
            assert_eq!(vm.host_word((page, 2)).load(SeqCst), filled(0, page, 2));
        }
        assert_eq!((seen(&vm, 0, 0), seen(&vm, 0, 1)), (touched, touched));
        assert_eq!(crate::migrate(&vm, 0, 2..4), 0);
        drop(pinned);
        assert_eq!(crate::migrate(&vm, 0, 2..4), 2);
        vm.vcpu(1).verify(0..4, START).wait()
    })
}
