//! Tests that the kernel's selftest does not have: drivers that fail or do not return, devices that go away, no memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use hmm_backend::observe::EventKind;
use hmm_backend::pages::{Page, PageRange};
use hmm_backend::testing::{KernelAnswers, KernelCall, MadeUpAnswer};
use hmmvisor_testkit::{FaultError, GuestError, Residency, TestVm, WayPoint, each_engine};

use crate::{N, START, all_freed, device_verifies, each_kind, filled, migrate};

#[test]
fn a_failed_copy_is_a_defined_fault() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder().engine(engine).scripted(N).start();
        let device = vm.device(0);
        vm.vcpu(0).fill(0..4, START).wait()?;
        vm.to_device(0, 0..4);
        for _ in 0..5 {
            let broken = FaultError::Fatal("the copy failed".into());
            device.fail(WayPoint::ToSystemAfterCopy, 1, broken);
            let read = vm.vcpu(1).read(2).wait();
            assert_eq!(read, Err(GuestError::Lost { page: 2 }));
            // Not half of it, not zeros, not its neighbours.
            assert!(device.holds(2));
            vm.vcpu(0).verify(0..2, START).wait()?;
            vm.vcpu(0).verify(3, filled(0, 3, 0)).wait()?;
        }
        // The contents have never left the device.
        vm.vcpu(1).verify(0..4, START).wait()
    })
}

#[test]
fn a_driver_fails_at_each_way_point_of_each_kind() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, N);
        let device = vm.device(0);
        vm.vcpu(0).fill(0..8, START).wait()?;
        for point in WayPoint::TO_DEVICE {
            device.fail(point, 1, FaultError::Fatal("no".into()));
            assert_eq!(migrate(&vm, 0, 0..8), 0);
            let there = point >= WayPoint::ToDeviceAfterCommit;
            assert_eq!(device.holds(0..8), there, "{point:?}");
            assert_eq!(device.pages(), if there { 8 } else { 0 }, "{point:?}");
            vm.vcpu(1).verify(0..8, START).wait()?;
            vm.to_system(0..8);
            assert_eq!(device.failed(point), 1);
            all_freed(&vm);
        }
        for point in WayPoint::TO_SYSTEM {
            for error in [FaultError::Retry, FaultError::OutOfMemory] {
                vm.to_device(0, 0..8);
                device.fail(point, 2, error);
                vm.to_system(0..8);
                // After the commit, one failure is too late to matter.
                device.heal();
                vm.vcpu(1).verify(0..8, START).wait()?;
            }
            assert!(device.failed(point) >= 2, "{point:?}");
        }
        Ok(())
    })
}

/// Has no memory when that is wanted.
#[derive(Default)]
struct NoMemory {
    now: AtomicBool,
    said: AtomicU64,
}

impl KernelAnswers for NoMemory {
    fn answer(&self, call: KernelCall, _: PageRange) -> Option<MadeUpAnswer> {
        (call == KernelCall::Give && self.now.load(SeqCst)).then(|| {
            self.said.fetch_add(1, SeqCst);
            MadeUpAnswer {
                unreported: 0,
                done: 0,
                errno: libc::ENOMEM,
            }
        })
    }
}

#[test]
fn an_eviction_without_free_memory_loses_nothing() -> Result<(), GuestError> {
    each_engine(|engine| {
        let kernel = Arc::new(NoMemory::default());
        let builder = TestVm::builder().engine(engine).kernel(kernel.clone());
        let vm = builder.scripted(16).start();
        vm.vcpu(0).fill(0..32, START).wait()?;
        vm.to_device(0, 0..16);
        kernel.now.store(true, SeqCst);
        // The device is full and nothing can leave: it reaches the others where they are.
        device_verifies(&vm, 0, 0, 16..32);
        assert!(kernel.said.load(SeqCst) > 0);
        assert!(vm.device(0).holds(0..16));
        assert!((16..32).all(|page| vm.residency(page) == Residency::System));
        // A CPU that wants such a page waits.
        let said = kernel.said.load(SeqCst);
        let read = vm.vcpu(1).read(3);
        vm.wait_until("the fault", || kernel.said.load(SeqCst) > said);
        assert!(!read.is_done());
        kernel.now.store(false, SeqCst);
        assert_eq!(read.wait()?, filled(0, 3, 0));
        vm.to_device(0, 16..32);
        device_verifies(&vm, 0, 0, 16..32);
        vm.vcpu(1).verify(0..32, START).wait()
    })
}

#[test]
fn a_device_is_unplugged_in_the_middle_of_a_migration() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        for point in WayPoint::TO_DEVICE.into_iter().chain(WayPoint::TO_SYSTEM) {
            let vm = kind.machine(engine, N);
            let device = vm.device(0);
            vm.vcpu(0).fill(0..N, START).wait()?;
            let back = point >= WayPoint::ToSystemEntry;
            vm.to_device(0, N / 2..N);
            let gate = device.hold_when(point, move |it| it.contains(if back { N - 1 } else { 0 }));
            let moving = match back {
                true => vm.begin_to_system(N / 2..N),
                false => vm.begin_to_device(0, 0..N / 2),
            };
            gate.wait_arrived();
            let unplug = device.unplug();
            // Other vCPUs and devices are served meanwhile.
            vm.vcpu(1).write(N + 1, 1).wait()?;
            gate.release();
            assert!(unplug.wait().is_ok(), "{point:?}");
            moving.wait();
            assert_eq!(
                (device.pages(), device.script().live()),
                (0, 0),
                "{point:?}"
            );
            vm.vcpu(1).verify(0..N, START).wait()?;
        }
        Ok(())
    })
}

#[test]
fn a_stuck_driver_is_reported_and_holds_up_nobody_else() -> Result<(), GuestError> {
    each_engine(|engine| {
        let builder = TestVm::builder().engine(engine);
        let vm = builder.scripted(N).scripted(N).start();
        vm.vcpu(0).fill(0..16, START).wait()?;
        vm.to_device(0, 0..8);
        vm.to_device(1, 8..16);
        let stuck = vm
            .device(0)
            .hold_when(WayPoint::ToSystemAfterCopy, |it| it.contains(3));
        let read = vm.vcpu(0).read(3);
        stuck.wait_arrived();
        vm.wait_for(|stats| stats.counters.slow_driver_calls > 0);
        let slow = vm.wait_event(|event| event.kind == EventKind::SlowDriver);
        let id = vm.device(0).id();
        assert_eq!((slow.page, slow.device), (Page(3), Some(id)));
        // The same device, another one, untouched memory.
        vm.vcpu(1).verify(0..3, START).wait()?;
        vm.vcpu(1).verify(4..8, filled(0, 4, 0)).wait()?;
        vm.vcpu(1).verify(8..16, filled(0, 8, 0)).wait()?;
        vm.vcpu(1).write(100, 1).wait()?;
        assert_eq!(migrate(&vm, 1, 100..102), 2);
        assert!(!read.is_done());
        stuck.release();
        assert_eq!(read.wait()?, filled(0, 3, 0));
        Ok(())
    })
}
