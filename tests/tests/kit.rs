//! The test kit itself: what it promises to tests is so, and it can fail.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use hmm_backend::driver::DefaultDriver;
use hmm_backend::pages::Page;
use hmmvisor_testkit::accel::{
    OP_CHASE, OP_FILL, OP_NOP, STATUS_ABORTED, STATUS_FAULT, STATUS_OPCODE,
};
use hmmvisor_testkit::{
    Engine, EventKind, FaultError, GuestError, Residency, TestVm, WayPoint, address, checksum,
    each_engine, pages, snapshot,
};

/// Device 0 is an accelerator, device 1 scripted.
fn machine(engine: Engine) -> TestVm {
    TestVm::builder()
        .engine(engine)
        .accelerator(32)
        .scripted(32)
        .start()
}

#[test]
fn the_guest_does_what_it_is_told() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder().engine(engine).vcpus(3).start();
        let cpu = vm.vcpu(2);
        assert_eq!(vm.residency(1), Residency::Untouched);
        cpu.write((1, 511), 7).wait()?;
        assert_eq!(vm.residency(1), Residency::System);
        assert_eq!(cpu.read((1, 511)).wait()?, 7);
        assert_eq!(cpu.read(Page(1)).wait()?, 0);
        assert_eq!(cpu.compare_exchange((1, 511), 8, 9).wait()?, 7);
        assert_eq!(cpu.compare_exchange((1, 511), 7, 9).wait()?, 7);
        assert_eq!(cpu.fetch_add((1, 511), 2).wait()?, 9);
        assert_eq!(vm.vcpu(0).read((1, 511)).wait()?, 11);
        cpu.fill(2..5, u64::MAX - 3).wait()?;
        let words = (0..3 * 512).map(|i| (u64::MAX - 3).wrapping_add(i));
        assert_eq!(cpu.checksum(2..5).wait()?, checksum(words));
        cpu.verify(2..5, u64::MAX - 3).wait()?;
        vm.vcpu(1).write((3, 4), 0xbad).wait()?;
        let wrong = GuestError::WrongData {
            page: 3,
            index: 4,
            expected: 512,
            found: 0xbad,
        };
        assert_eq!(cpu.verify(2..5, u64::MAX - 3).wait(), Err(wrong));
        assert_eq!(cpu.add_rounds(6..9, 5, 20).wait()?, 20);
        assert_eq!(vm.vcpu(0).read(8).wait()?, 100);
        assert_eq!(vm.vcpu(0).free(2..4).wait()?, 2);
        assert_eq!(vm.vcpu(0).checksum(2..4).wait()?, 0);
        Ok(())
    })
}

#[test]
fn one_command_waits_for_the_other() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder().engine(engine).vcpus(1).start();
        let cpu = vm.vcpu(0);
        let adds: Vec<_> = (0..20).map(|_| cpu.fetch_add(0, 3)).collect();
        for (before, add) in adds.into_iter().enumerate() {
            assert_eq!(add.wait()?, 3 * before as u64);
        }
        Ok(())
    })
}

#[test]
fn accelerators_answer_and_can_be_reset_and_stopped() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder()
            .engine(engine)
            .scripted(8)
            .accelerator(16)
            .accelerator(16)
            .start();
        for (cpu, device) in [(0, 1), (1, 2)] {
            let cpu = vm.vcpu(cpu);
            cpu.submit(device, OP_FILL, &[address(1), 512, 0, 1])
                .wait()?;
            assert!(vm.device(device).holds(1));
            cpu.reset(device).wait()?;
            cpu.submit(device, OP_NOP, &[]).wait()?;
            assert_eq!(
                vm.snapshot(device, 1),
                [snapshot::DEVICE_LOCAL | snapshot::WRITE]
            );
            assert_eq!(
                vm.snapshot(0, 1),
                [snapshot::DEVICE_REMOTE | snapshot::WRITE]
            );
            let (status, address) = (STATUS_OPCODE, 0);
            let refused = cpu.submit(device, 999, &[]).wait();
            assert_eq!(refused, Err(GuestError::Accelerator { status, address }));
            vm.device(device).stop().wait();
            let stopped = cpu.submit(device, OP_NOP, &[]).wait();
            assert_eq!(stopped, Err(GuestError::Disabled));
        }
        Ok(())
    })
}

#[test]
fn an_accelerator_is_stopped_in_the_middle_of_a_command() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = machine(engine);
        vm.vcpu(0).write(3, 0).wait()?;
        // Follows a pointer to itself, practically for ever.
        let chase = vm
            .vcpu(0)
            .submit(0, OP_CHASE, &[address(3), 0, u64::MAX, 1]);
        vm.wait_until("the command's first access", || vm.device(0).holds(3));
        assert!(!chase.is_done());
        vm.device(0).stop().wait();
        let (status, address) = (STATUS_ABORTED, 0);
        assert_eq!(
            chase.wait(),
            Err(GuestError::Accelerator { status, address })
        );
        assert_eq!(vm.vcpu(1).read(3).wait()?, 0);
        Ok(())
    })
}

#[test]
fn threads_of_a_test_share_a_machine() {
    each_engine(|engine| {
        let vm = TestVm::builder().engine(engine).scripted(16).start();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let cpu = vm.vcpu(thread % 2);
                scope.spawn(move || (0..50).for_each(|_| _ = cpu.fetch_add(1, 1).wait().unwrap()));
            }
            for _ in 0..20 {
                vm.to_device(0, 1);
            }
        });
        assert_eq!(vm.vcpu(0).read(1).wait()?, 200);
        Ok::<_, GuestError>(())
    })
    .unwrap();
}

#[test]
fn a_migration_is_held_at_each_way_point() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = machine(engine);
        for (index, device) in [vm.device(0), vm.device(1)].into_iter().enumerate() {
            vm.vcpu(0).write(3, 70).wait()?;
            for point in WayPoint::TO_DEVICE {
                let gate = device.hold(point);
                let moving = vm.begin_to_device(index, 3);
                let arrival = gate.wait_arrived();
                assert_eq!(
                    (arrival.point, &arrival.pages[..]),
                    (point, &[pages(3..4)][..])
                );
                let word = vm.backend().word(Page(3)).unwrap();
                let committed = point >= WayPoint::ToDeviceAfterCommit;
                assert_eq!(device.holds(3), committed, "{point:?}");
                assert_eq!(word.locked(), point < WayPoint::ToDeviceAfterFinalize);
                // The lock holds up other accesses to the page.
                if point < WayPoint::ToDeviceAfterFinalize {
                    let write = vm.vcpu(1).write((3, 1), 71);
                    if point >= WayPoint::ToDeviceAfterCopy {
                        assert!(!write.is_done());
                        assert!(!moving.is_done());
                        gate.release();
                    } else {
                        // Nothing has moved yet, so the CPU is not held up.
                        write.wait()?;
                        gate.release();
                    }
                } else {
                    gate.release();
                }
                assert_eq!(moving.wait(), 1);
                assert_eq!(vm.vcpu(1).read(3).wait()?, 70, "{point:?} of {index}");
            }
            for point in WayPoint::TO_SYSTEM {
                vm.to_device(index, 3);
                let gate = device.hold(point);
                let read = vm.vcpu(0).read(3);
                assert!(gate.wait_arrived().contains(3));
                if point < WayPoint::ToSystemAfterCommit {
                    assert!(!read.is_done() && device.holds(3));
                    gate.release();
                    assert_eq!(read.wait()?, 70);
                } else {
                    // The CPU runs while the driver has not returned yet.
                    assert_eq!(read.wait()?, 70);
                    gate.release();
                }
                assert_eq!(vm.residency(3), Residency::System);
            }
            assert_eq!(device.reached(WayPoint::ToSystemEntry), 10);
            let free = device.hold(WayPoint::PageFree);
            vm.to_device(index, 3);
            let freed = vm.vcpu(0).free(3);
            assert_eq!(free.wait_arrived().len(), 1);
            assert!(!freed.is_done());
            free.release();
            assert_eq!(freed.wait()?, 1);
        }
        Ok(())
    })
}

#[test]
fn a_driver_fails_at_each_way_point() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = machine(engine);
        for (index, device) in [vm.device(0), vm.device(1)].into_iter().enumerate() {
            vm.vcpu(0).fill(0..8, 90).wait()?;
            for point in WayPoint::TO_DEVICE {
                device.fail(point, 1, FaultError::Fatal("no".into()));
                let moved = vm.backend().migrate_to_device(device.id(), pages(0..8));
                // After the commit it is too late.
                let stays = point < WayPoint::ToDeviceAfterCommit;
                assert_eq!(
                    (moved.unwrap(), device.holds(0..8)),
                    (0, !stays),
                    "{point:?}"
                );
                assert_eq!(device.failed(point), 1);
                vm.vcpu(1).verify(0..8, 90).wait()?;
            }
            for point in WayPoint::TO_SYSTEM {
                for error in [FaultError::Retry, FaultError::OutOfMemory] {
                    vm.to_device(index, 0..8);
                    device.fail(point, 2, error);
                    vm.vcpu(1).verify(0..8, 90).wait()?;
                }
                assert_eq!(device.failed(point), 4, "{point:?}");
            }
            vm.to_device(index, 0..8);
            device.fail_when(WayPoint::ToSystemEntry, FaultError::Retry, |arrival| {
                arrival.contains(5)
            });
            vm.vcpu(0).verify(0..5, 90).wait()?;
            let read = vm.vcpu(0).read(5);
            vm.wait_until("refusals", || device.failed(WayPoint::ToSystemEntry) > 6);
            assert!(!read.is_done());
            device.heal();
            assert_eq!(read.wait()?, 90 + 5 * 512);
            vm.to_system(0..8);
        }
        Ok(())
    })
}

#[test]
fn cut_folios_come_by_the_gate() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder().engine(engine).scripted(16).start();
        vm.vcpu(0).fill(0..16, 4).wait()?;
        vm.to_device(0, 0..16);
        let gate = vm
            .device(0)
            .hold_when(WayPoint::FolioSplit, |it| it.len() == 4);
        let read = vm.vcpu(1).read(6);
        let arrival = gate.wait_arrived();
        assert_eq!(arrival.pages, [pages(4..8)]);
        assert_eq!(gate.arrivals(), [arrival]);
        assert!(!read.is_done());
        gate.release();
        assert_eq!(read.wait()?, 4 + 6 * 512);
        assert_eq!(vm.device(0).pages(), 15);
        Ok(())
    })
}

#[test]
fn an_accelerator_meets_a_lost_page() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = machine(engine);
        vm.vcpu(0).write(3, 1).wait()?;
        vm.to_device(1, 3);
        let lost = FaultError::Fatal("gone".into());
        // What a driver does not hand on directly comes by way of system memory.
        vm.device(1).fail(WayPoint::Flush, 1, FaultError::Retry);
        vm.device(1).fail(WayPoint::ToSystemEntry, 1, lost);
        let fill = || {
            vm.vcpu(0)
                .submit(0, OP_FILL, &[address(3), 512, 0, 1])
                .wait()
        };
        let (status, address) = (STATUS_FAULT, address(3));
        assert_eq!(fill(), Err(GuestError::Accelerator { status, address }));
        fill()?;
        assert!(vm.device(0).holds(3));
        Ok(())
    })
}

#[test]
fn events_and_counters_are_waited_for() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder()
            .engine(engine)
            .policy("density")
            .scripted(64)
            .start();
        vm.vcpu(0).fill(0..64, 0).wait()?;
        vm.to_device(0, 0..64);
        vm.drain_events();
        vm.vcpu(0).read(9).wait()?;
        let event = vm.wait_event(|event| event.kind == EventKind::CpuFault);
        assert_eq!(event.page, Page(9));
        vm.wait_for(|stats| stats.pages_to_system() > 0);
        Ok(())
    })
}

/// The message of a test that waits in vain.
fn message(test: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(test)).expect_err("it must fail");
    *panic.downcast::<String>().expect("panics say something")
}

#[test]
fn whoever_waits_in_vain_learns_where_the_vcpu_is() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder().engine(engine).scripted(16).start();
        vm.vcpu(1).write((6, 2), 4).wait()?;
        vm.to_device(0, 6);
        let gate = vm.device(0).hold(WayPoint::ToSystemBeforeCopy);
        let read = vm.vcpu(1).read((6, 2));
        gate.wait_arrived();
        vm.set_patience(Duration::from_millis(200));
        let text = message(|| drop(read.wait()));
        for part in [
            "vCPU 1 has not done `read of page 0x6, word 2` within 200ms",
            "it is at page 0x6, word 2, which is Device",
            "in motion, held at a gate of device 0",
            "gate at ToSystemBeforeCopy holds [[pages 0x6..0x7]]",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let other = vm.device(0).hold(WayPoint::ToDeviceEntry);
        let text = message(|| drop(other.wait_arrived()));
        assert!(text.contains("no call has reached the gate"), "{text}");
        let text = message(|| vm.wait_for(|stats| stats.cpu_faults > 1000));
        assert!(text.contains("waited in vain for the counters"), "{text}");
        let text = message(|| _ = vm.wait_event(|event| event.kind == EventKind::Fatal));
        assert!(text.contains("waited in vain for an event"), "{text}");
        let text = message(|| _ = vm.wait_ended());
        assert!(text.contains("the run does not end"), "{text}");
        // With the gate still closed and a vCPU asleep: dropping the machine opens all gates.
        drop(other);
        std::mem::forget(gate);
        Ok(())
    })
}

#[test]
fn the_end_of_a_run_is_an_answer() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder().engine(engine).scripted(16).start();
        vm.vcpu(0).write(2, 4).wait()?;
        vm.to_device(0, 2);
        vm.device(0)
            .fail(WayPoint::ToSystemEntry, 1, FaultError::Fatal("gone".into()));
        let error = vm.vcpu(0).read(2).wait().unwrap_err();
        assert_eq!(error.page(), Some(2), "{error}");
        Ok(())
    })
}

#[test]
fn a_driver_of_ones_own_is_driven_like_the_others() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder()
            .engine(engine)
            .driver(16, Arc::new(DefaultDriver))
            .start();
        vm.vcpu(0).fill(0..4, 1).wait()?;
        vm.to_device(0, 0..4);
        let gate = vm.device(0).hold(WayPoint::ToSystemAfterCopy);
        let verify = vm.vcpu(1).verify(0..4, 1);
        gate.wait_arrived();
        gate.release();
        verify.wait()
    })
}

/// Device memory is short: a script says who goes, here by address.
#[test]
fn a_policy_may_be_a_script() -> Result<(), GuestError> {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("highest.luau");
    let highest_address_first = "return {
        on_fault = function() end,
        victims = function(want, candidates)
            local order = {}
            for i in candidates do order[i] = i end
            table.sort(order, function(a, b) return candidates[a].page > candidates[b].page end)
            return order
        end,
    }";
    std::fs::write(&script, highest_address_first).unwrap();
    let policy = format!("{}+timeslice:min=0", script.display());
    each_engine(|engine| {
        let vm = TestVm::builder().engine(engine).policy(&policy);
        let vm = vm.scripted(16).start();
        vm.vcpu(0).fill(0..17, 1).wait()?;
        let device = vm.device(0);
        for page in 0..17 {
            device.read(page).unwrap();
        }
        // An eighth of the memory is evicted at a time, chosen among four times as much: the pages 0 to 7 had been used
        // longest ago.
        assert!(device.holds(0..6) && device.holds(8..17), "{vm:?}");
        assert_eq!(device.pages(), 15);
        let figures = vm.script().unwrap();
        assert!(
            figures.decisions > 17 && figures.failures == 0,
            "{figures:?}"
        );
        vm.vcpu(1).verify(0..17, 1).wait()
    })
}
