//! The examples of `docs/testing.md`, word for word.

use hmmvisor_testkit::accel::{OP_FILL, OP_REDUCE, STATUS_PERMISSION};
use hmmvisor_testkit::{
    Cause, FaultError, GuestError, Residency, TestVm, WayPoint, address, each_engine, pages,
};

#[test]
fn a_cpu_fault_brings_a_device_page_back() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder().engine(engine).scripted(16).start();
        vm.vcpu(0).write(3, 42).wait()?;
        vm.to_device(0, 3);
        assert_eq!(vm.vcpu(1).read(3).wait()?, 42);
        assert_eq!(vm.residency(3), Residency::System);
        vm.wait_for(|stats| stats.pages_to_system() == 1);
        Ok(())
    })
}

#[test]
fn a_guest_does_not_notice_a_driver_that_asks_to_retry() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder().engine(engine).scripted(16).start();
        vm.vcpu(0).fill(0..4, 1000).wait()?;
        vm.to_device(0, 0..4);
        let device = vm.device(0);
        device.fail(WayPoint::ToSystemAfterCopy, 3, FaultError::Retry);
        vm.vcpu(1).verify(0..4, 1000).wait()?;
        assert_eq!(device.failed(WayPoint::ToSystemAfterCopy), 3);
        vm.wait_for(|stats| stats.counters.faults_retried == 3);
        Ok(())
    })
}

#[test]
fn a_page_that_cannot_be_supplied_is_an_error_not_wrong_data() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder().engine(engine).scripted(16).start();
        vm.vcpu(0).write(7, 1).wait()?;
        vm.to_device(0, 7);
        let lost = FaultError::Fatal("the link is down".into());
        vm.device(0).fail(WayPoint::ToSystemEntry, 1, lost);
        let error = vm.vcpu(0).read(7).wait().unwrap_err();
        assert_eq!(error.page(), Some(7));
        Ok(())
    })
}

#[test]
fn a_vcpu_sleeps_while_its_page_is_on_the_way() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder().engine(engine).scripted(16).start();
        vm.vcpu(0).fill(0..2, 5).wait()?;
        vm.to_device(0, 0);
        let gate = vm.device(0).hold(WayPoint::ToSystemAfterCopy);
        let read = vm.vcpu(0).read(0);
        assert!(gate.wait_arrived().contains(0) && !read.is_done());
        vm.vcpu(1).write(1, 8).wait()?; // Others are not held up.
        gate.release();
        assert_eq!(read.wait()?, 5);
        Ok(())
    })
}

#[test]
fn a_failed_migration_is_rolled_back() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder().engine(engine).scripted(16).start();
        vm.vcpu(0).fill(0..8, 77).wait()?;
        let (device, broken) = (vm.device(0), FaultError::Fatal("no power".into()));
        device.fail(WayPoint::ToDeviceAfterCopy, 1, broken);
        let moved = vm.backend().migrate_to_device(device.id(), pages(0..8));
        assert_eq!((moved.unwrap(), device.pages()), (0, 0));
        vm.vcpu(1).verify(0..8, 77).wait()?;
        assert_eq!(vm.stats().pages_to_system(), 0); // It never was away.
        Ok(())
    })
}

#[test]
fn a_device_can_be_unplugged_in_the_middle_of_a_fault() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder().engine(engine).accelerator(64).start();
        vm.vcpu(0).fill(0..32, 1).wait()?;
        vm.to_device(0, 0..32);
        let gate = vm.device(0).hold(WayPoint::ToSystemAfterCopy);
        let verify = vm.vcpu(0).verify(0..32, 1);
        gate.wait_arrived();
        let unplug = vm.device(0).unplug();
        gate.release();
        assert_eq!((unplug.wait().is_ok(), vm.device(0).pages()), (true, 0));
        verify.wait()
    })
}

#[test]
fn freed_pages_are_never_copied_back() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder().engine(engine).scripted(64).start();
        vm.vcpu(0).fill(0..32, 1).wait()?;
        vm.to_device(0, 0..32);
        assert_eq!(vm.vcpu(0).free(0..32).wait()?, 32);
        assert!(vm.device(0).reached(WayPoint::PageFree) > 0);
        assert_eq!(vm.device(0).reached(WayPoint::ToSystemEntry), 0);
        assert_eq!(vm.vcpu(1).checksum(0..32).wait()?, 0);
        vm.wait_for(|stats| stats.pages_freed == 32);
        Ok(())
    })
}

#[test]
fn an_accelerator_works_on_more_than_its_memory_holds() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder().engine(engine).accelerator(16).start();
        let (cpu, n) = (vm.vcpu(0), 64 * 512);
        cpu.submit(0, OP_FILL, &[address(0), n, 500, 1]).wait()?;
        cpu.verify(0..64, 500).wait()?;
        let sum = cpu.submit(0, OP_REDUCE, &[address(0), n]).wait()?;
        assert_eq!(sum, n * 500 + n * (n - 1) / 2);
        vm.wait_event(|event| event.cause == Some(Cause::Eviction));
        Ok(())
    })
}

#[test]
fn no_addition_is_lost_while_pages_migrate() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder().engine(engine).scripted(16).start();
        let adding = [0, 1].map(|cpu| vm.vcpu(cpu).add_until_stopped(3, 1));
        for _ in 0..50 {
            vm.to_device(0, 3);
            adding.iter().for_each(|it| it.wait_rounds(1));
        }
        let [a, b] = adding.map(|it| it.stop());
        assert_eq!(vm.vcpu(0).read(3).wait()?, a? + b?);
        Ok(())
    })
}

#[test]
fn an_accelerator_may_not_write_a_read_only_page() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder().engine(engine).accelerator(16).start();
        let cpu = vm.vcpu(0);
        cpu.fill(5, 30).wait()?;
        cpu.set_read_only(5).wait()?;
        let write = || cpu.submit(0, OP_FILL, &[address(5), 512, 0, 0]).wait();
        let (status, address) = (STATUS_PERMISSION, address(5));
        assert_eq!(write(), Err(GuestError::Accelerator { status, address }));
        cpu.verify(5, 30).wait()?;
        cpu.set_writable(5).wait()?;
        write().map(|_| ())
    })
}

/// The document shows these very tests, all of them; besides them only a test of `own_driver.rs`, which checks that.
#[test]
fn the_document_shows_these_tests() {
    let document = include_str!("../../docs/testing.md");
    let source = include_str!("examples.rs");
    let (_, section) = document.split_once("## Ten examples").unwrap();
    let shown: Vec<&str> = section
        .split("```rust\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    for code in &shown {
        assert!(source.contains(code), "only in the document:\n{code}");
        assert!(code.lines().count() <= 15, "too long:\n{code}");
    }
    let examples = source.split("/// The document").next().unwrap();
    let tests = examples.matches("#[test]").count();
    // The first piece is the imports.
    assert_eq!((shown.len() - 1, tests), (10, 10));
}
