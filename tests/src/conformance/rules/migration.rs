//! Contents and progress: the places of pages after migrations, and their contents there.

use hmm_backend::pages::{MAX_ORDER, Page};
use hmm_backend::residency::{Placed, Residency};
use hmm_backend::testing::KernelCall;

use crate::conformance::bench::{Bench, Checked, pattern, same};
use crate::conformance::{DeviceAccess, Evidence};

/// A large folio's place: aligned to 2 MiB, and clear of the subject's own pages.
const LARGE: u32 = 0;

pub fn cpu_fault(bench: &mut Bench) -> Checked {
    bench.fill(0..16);
    bench.to_device(0..16)?;
    for page in 0..16 {
        bench.expect_filled("read by a CPU that faults", page..page + 1)?;
        let place = bench.residency(page);
        if place != Residency::System {
            let evidence = Evidence::new("after the fault", "system memory", format!("{place:?}"));
            return Err(evidence.at(Page(page)));
        }
    }
    // A write to a page that was not read before.
    bench.to_device(0..16)?;
    for page in 0..16 {
        bench
            .cpu(page, 7)
            .store(1, std::sync::atomic::Ordering::SeqCst);
        let expected = |page, word| match word {
            7 => 1,
            _ => pattern(page, word),
        };
        bench.expect_page("after a write by a CPU that faults", page, expected)?;
    }
    Ok(())
}

pub fn every_size(bench: &mut Bench) -> Checked {
    for order in 0..=MAX_ORDER {
        let pages = LARGE..LARGE + (1 << order);
        let len = pages.len() as u64;
        for page in pages.clone() {
            bench
                .cpu(page, 0)
                .store(1, std::sync::atomic::Ordering::SeqCst);
        }
        bench.all_to_device(pages.clone())?;
        let place = bench.residency(LARGE);
        if !matches!(place, Residency::Device(Placed { order: o, .. }) if o == order) {
            let expected = format!("device memory, order {order}");
            let evidence = Evidence::new("the folio's place", expected, format!("{place:?}"));
            return Err(evidence.at(Page(LARGE)));
        }
        let moved = bench.to_system(pages)?;
        let what = || format!("pages moved back of a folio of order {order}");
        same(what, LARGE, len, moved)?;
    }
    Ok(())
}

pub fn round_trip(bench: &mut Bench) -> Checked {
    let mut moved = 0;
    for order in 0..=MAX_ORDER {
        let pages = LARGE..LARGE + (1 << order);
        bench.fill(pages.clone());
        moved += bench.to_device(pages.clone())?;
        for page in [pages.start, pages.end - 1] {
            for word in [0, 255, 511] {
                let found = bench.unit().device.read(Page(page), word);
                let found = found.map_err(|e| Evidence::new("a device's read", "contents", e))?;
                let what = || format!("word {word} on the device, order {order}");
                same(what, page, pattern(page, word), found)?;
            }
        }
        bench.to_system(pages.clone())?;
        bench.expect_filled(&format!("after the way back, order {order}"), pages)?;
    }
    match moved {
        0 => Err(Evidence::new("pages moved to the device", "some", 0)),
        _ => Ok(()),
    }
}

pub fn zero_pages(bench: &mut Bench) -> Checked {
    // Single ones, a large folio of them, and some in one folio with pages that have contents.
    for page in (100..116).step_by(2) {
        bench.fill(page..page + 1);
    }
    for pages in [0..1, 3..4, 128..256, 96..128] {
        bench.to_device(pages.clone())?;
        for page in [pages.start, pages.end - 1] {
            let found = bench.unit().device.read(Page(page), 511);
            let found = found.map_err(|e| Evidence::new("a device's read", "contents", e))?;
            same(|| "a word on the device".into(), page, 0, found)?;
        }
        bench.to_system(pages)?;
    }
    for pages in [0..1, 3..4, 128..256, 96..100, 116..128] {
        bench.expect_zeros("untouched, after the way back", pages)?;
    }
    for page in 100..116 {
        match page % 2 {
            0 => bench.expect_filled("a neighbour of zeros", page..page + 1)?,
            _ => bench.expect_zeros("a neighbour of contents", page..page + 1)?,
        }
    }
    Ok(())
}

pub fn pinned_skipped(bench: &mut Bench) -> Checked {
    bench.fill(0..16);
    let pin = |pages| bench.backend.pin(crate::pages(pages)).expect("a pin");
    let pins = [pin(5..6), pin(9..11)];
    let moved = bench.to_device(0..16)?;
    same(|| "pages moved, with 3 of 16 pinned".into(), 0, 13, moved)?;
    for page in [5, 9, 10] {
        let place = bench.residency(page);
        if place != Residency::System {
            let evidence = Evidence::new("a pinned page", "system memory", format!("{place:?}"));
            return Err(evidence.at(Page(page)));
        }
    }
    bench.check_books("with pinned pages between folios")?;
    drop(pins);
    bench.to_system(0..16)?;
    bench.expect_filled("after the way back", 0..16)
}

pub fn busy_to_device(bench: &mut Bench) -> Checked {
    bench.fill(0..64);
    let busy = [0, 13, 14, 63];
    bench
        .obstacles()
        .put(KernelCall::Take, busy, libc::EBUSY, 1);
    let moved = bench.to_device(0..64)?;
    same(|| "pages moved, with 4 of 64 busy".into(), 0, 60, moved)?;
    for page in busy {
        let place = bench.residency(page);
        if place != Residency::System {
            let evidence = Evidence::new("a busy page", "system memory", format!("{place:?}"));
            return Err(evidence.at(Page(page)));
        }
    }
    bench.check_books("after a migration that left busy pages behind")?;
    bench.to_system(0..64)?;
    bench.expect_filled("after the way back", 0..64)?;
    bench
        .obstacles()
        .put(KernelCall::Take, 0..64, libc::EBUSY, 1);
    let moved = bench.to_device(0..64)?;
    same(|| "pages moved, with all busy".into(), 0, 0, moved)?;
    bench.check_books("after a migration of nothing")?;
    bench.expect_filled("after a migration of nothing", 0..64)
}

pub fn busy_to_system(bench: &mut Bench) -> Checked {
    bench.fill(0..64);
    bench.to_device(0..64)?;
    let busy = [3, 4, 40];
    bench
        .obstacles()
        .put(KernelCall::Give, busy, libc::EBUSY, 1);
    let moved = bench.to_system(0..64)?;
    same(
        || "pages moved back, with 3 of 64 busy".into(),
        0,
        61,
        moved,
    )?;
    bench.check_books("with busy pages still on the device")?;
    bench
        .obstacles()
        .put(KernelCall::Give, busy, libc::EBUSY, 1);
    bench.to_system(0..64)?;
    bench.check_books("after a migration of nothing")?;
    // A CPU's access is tried again by itself.
    bench
        .obstacles()
        .put(KernelCall::Give, busy, libc::EBUSY, 3);
    bench.expect_filled("read by CPUs, busy three times", 0..64)?;
    obstructions_met(bench)
}

pub fn out_of_memory(bench: &mut Bench) -> Checked {
    bench.fill(0..4);
    bench.to_device(0..4)?;
    bench
        .obstacles()
        .put(KernelCall::Give, 0..4, libc::ENOMEM, 3);
    bench.expect_filled("read by CPUs, three times without host memory", 0..4)?;
    obstructions_met(bench)?;
    // The same for a migration on request.
    bench.to_device(0..4)?;
    bench
        .obstacles()
        .put(KernelCall::Give, 0..4, libc::ENOMEM, 1);
    bench.to_system(0..4)?;
    bench.check_books("after a migration without host memory")?;
    bench.to_system(0..4)?;
    bench.expect_filled("after the way back", 0..4)
}

/// A driver that is asked less often than the rule expects has not been checked.
fn obstructions_met(bench: &Bench) -> Checked {
    match bench.obstacles().left() {
        0 => Ok(()),
        left => Err(Evidence::new("obstacles not met by any migration", 0, left)),
    }
}
