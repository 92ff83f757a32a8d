//! Large folios: empty, freed, cut, without a large frame (30 to 38).

use std::time::Instant;

use hmm_backend::pages::Page;
use hmmvisor_testkit::{
    Engine, FaultError, GuestError, Residency, TestVm, WayPoint, pages, snapshot,
};
use std::sync::atomic::Ordering::SeqCst;

use crate::{
    Kind, LARGE, START, WORDS, all_freed, device_finds_zeros, device_verifies, each_kind, filled,
    free, migrate,
};

#[test]
fn t30_migrate_anon_huge_empty() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, LARGE);
        vm.vcpu(0).set_read_only(0..LARGE).wait()?;
        assert_eq!(migrate(&vm, 0, 0..LARGE), LARGE);
        let empty = kind.local() | snapshot::READ | snapshot::LARGE;
        assert_eq!(vm.snapshot(0, 0..LARGE), vec![empty; LARGE as usize]);
        device_finds_zeros(&vm, 0, 0..LARGE);
        // It is untouched: no contents were copied, no memory was used.
        assert_eq!(vm.stats().first_touch_faults, 0);
        assert_eq!(vm.vcpu(1).checksum(0..LARGE).wait()?, 0);
        Ok(())
    })
}

#[test]
fn t31_migrate_anon_huge_zero() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, LARGE);
        vm.vcpu(0).set_read_only(0..LARGE).wait()?;
        // Reads have put zeros there.
        assert_eq!(vm.vcpu(0).checksum(0..LARGE).wait()?, 0);
        assert_eq!(vm.residency(7), Residency::System);
        assert_eq!(migrate(&vm, 0, 0..LARGE), LARGE);
        device_finds_zeros(&vm, 0, 0..LARGE);
        assert_eq!(vm.vcpu(1).checksum(0..LARGE).wait()?, 0);
        Ok(())
    })
}

#[test]
fn t32_migrate_anon_huge_free() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, LARGE);
        vm.vcpu(0).fill(0..LARGE, START).wait()?;
        vm.to_device(0, 0..LARGE);
        device_verifies(&vm, 0, 0, 0..LARGE);
        assert_eq!(free(&vm, 0..LARGE)?, LARGE);
        let device = vm.device(0);
        assert_eq!((device.pages(), device.script().live()), (0, 0));
        assert_eq!(
            device.reached(WayPoint::PageFree),
            1,
            "one folio, one notice"
        );
        assert_eq!(
            device.reached(WayPoint::ToSystemEntry),
            0,
            "nothing is copied"
        );
        assert_eq!(vm.vcpu(1).checksum(0..LARGE).wait()?, 0);
        Ok(())
    })
}

#[test]
fn t33_migrate_anon_huge_fault() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        let vm = kind.machine(engine, LARGE);
        vm.vcpu(0).fill(0..LARGE, START).wait()?;
        vm.to_device(0, 0..LARGE);
        let whole = kind.local() | snapshot::WRITE | snapshot::LARGE;
        assert_eq!(vm.snapshot(0, 0..LARGE), vec![whole; LARGE as usize]);
        if kind == Kind::Private {
            let present = vm.backend().resident_bytes(pages(0..LARGE)).unwrap();
            assert_eq!(present, 0, "no page is present");
        }
        vm.vcpu(1).verify(0..LARGE, START).wait()
    })
}

#[test]
fn t34_migrate_partial_unmap_fault() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        for (size, large) in [(LARGE, true), (64, false)] {
            for offset in [0, size / 4, size / 2] {
                let vm = kind.machine(engine, LARGE);
                vm.vcpu(0).fill(0..size, START).wait()?;
                vm.to_device(0, 0..size);
                let is_large = vm.snapshot(0, 0)[0] & snapshot::LARGE != 0;
                assert_eq!(is_large, large);
                let gone = offset..offset + size / 2;
                assert_eq!(free(&vm, gone.clone())?, size / 2);
                // What was cut off is still where it was, with cookies of its own; what is gone is zeros.
                assert_eq!(vm.device(0).pages(), size / 2);
                let rest = [0..gone.start, gone.end..size];
                for rest in rest.iter().filter(|rest| !rest.is_empty()) {
                    device_verifies(&vm, 0, 0, rest.clone());
                    let start = filled(0, rest.start, 0);
                    vm.vcpu(1).verify(rest.clone(), start).wait()?;
                }
                assert_eq!(vm.vcpu(1).checksum(gone).wait()?, 0);
                vm.to_system(0..size);
                all_freed(&vm);
            }
        }
        Ok(())
    })
}

/// Guest-physical addresses do not move. The device's part is the same: it finds contents by their frames, by whichever
/// address they are accessed, and after other parts of the folio were cut off.
#[test]
fn t35_migrate_remap_fault() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        for size in [LARGE, 64] {
            for offset in [0, size / 4, size / 2] {
                let vm = kind.machine(engine, LARGE);
                vm.vcpu(0).fill(0..size, START).wait()?;
                // In two steps, the upper part first: frames are in another order than pages.
                vm.to_device(0, offset..size);
                vm.to_device(0, 0..offset.max(1));
                let one = offset + 3;
                // Two addresses of one page: the guest's, and the VMM's alias.
                for word in WORDS {
                    let alias = vm.host_word((one, word)).load(SeqCst);
                    assert_eq!(alias, filled(0, one, word));
                    assert_eq!(vm.vcpu(1).read((one, word)).wait()?, alias);
                }
                // The device goes away, frame by frame.
                assert!(vm.device(0).unplug().wait().is_ok());
                assert_eq!(vm.device(0).script().live(), 0);
                vm.vcpu(1).verify(0..size, START).wait()?;
            }
        }
        Ok(())
    })
}

/// A device with enough frames for a large folio, but not side by side. Its last block of pages is still to be moved.
fn crowded(engine: Engine, kind: Kind) -> Result<TestVm, GuestError> {
    let vm = kind.machines(engine, &[2 * LARGE], 3 * LARGE);
    vm.vcpu(0).fill(0..2 * LARGE, START).wait()?;
    vm.to_device(0, 0..2 * LARGE);
    for block in [0, LARGE] {
        vm.vcpu(0).free(block..block + 200).wait()?;
        vm.vcpu(0).free(block + 201..block + LARGE).wait()?;
    }
    assert_eq!(vm.device(0).pages(), 2);
    Ok(vm)
}

/// 36 and 37, with these contents.
fn without_a_large_frame(engine: Engine, kind: Kind, start: Option<u64>) -> Result<(), GuestError> {
    let vm = crowded(engine, kind)?;
    let (device, first, end) = (vm.device(0), 2 * LARGE, 3 * LARGE);
    if let Some(start) = start {
        vm.vcpu(0).fill(first..end, start).wait()?;
    }
    let right = |vm: &TestVm, range: std::ops::Range<u32>| match start {
        Some(start) => {
            let start = start + u64::from(range.start - first) * 512;
            vm.vcpu(1).verify(range, start).wait()
        }
        None => vm
            .vcpu(1)
            .checksum(range)
            .wait()
            .map(|sum| assert_eq!(sum, 0)),
    };
    // The migration succeeds with smaller folios, and evicts none.
    assert_eq!(migrate(&vm, 0, first..end), LARGE);
    let small = kind.local() | snapshot::WRITE;
    assert_eq!(vm.snapshot(0, first..end), vec![small; LARGE as usize]);
    assert_eq!(device.pages(), LARGE + 2);
    right(&vm, first + 5..first + 6)?;
    // Back, short of memory at first.
    device.fail(WayPoint::ToSystemEntry, 2, FaultError::OutOfMemory);
    vm.to_system(first..end);
    assert_eq!(device.failed(WayPoint::ToSystemEntry), 2);
    right(&vm, first..end)?;
    device_verifies(&vm, 0, 0, 200..201);
    vm.vcpu(1)
        .verify(LARGE + 200, filled(0, LARGE + 200, 0))
        .wait()
}

#[test]
fn t36_migrate_anon_huge_err() -> Result<(), GuestError> {
    each_kind(|engine, kind| without_a_large_frame(engine, kind, Some(START)))
}

#[test]
fn t37_migrate_anon_huge_zero_err() -> Result<(), GuestError> {
    each_kind(|engine, kind| without_a_large_frame(engine, kind, None))
}

/// Figures, no thresholds; contents are checked. The benchmarks of `hmm-backend` are the real thing.
#[test]
fn t38_benchmark_thp_migration() -> Result<(), GuestError> {
    each_kind(|engine, kind| {
        for blocks in [1, 4] {
            let size = blocks * LARGE;
            let vm = kind.machines(engine, &[size], size);
            vm.vcpu(0).fill(0..size, START).wait()?;
            for folio in [LARGE, 1] {
                let mut times = Vec::new();
                for to_device in [true, false] {
                    let begin = Instant::now();
                    for page in (0..size).step_by(folio as usize) {
                        match to_device {
                            true => vm.to_device(0, page..page + folio),
                            false => vm.to_system(page..page + folio),
                        }
                    }
                    let bytes = f64::from(size) * 4096.0;
                    times.push(bytes / begin.elapsed().as_secs_f64() / 1e9);
                }
                println!("{engine}, {kind:?}, {size} pages by {folio}: {times:.2?} GB/s");
            }
            vm.vcpu(1).verify(0..size, START).wait()?;
            assert!(!vm.backend().in_motion(Page(0)).unwrap());
        }
        Ok(())
    })
}
