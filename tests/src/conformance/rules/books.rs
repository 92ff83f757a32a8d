//! Cookies and frees: the driver's record of the folios in its memory.

use hmm_backend::observe::Cause;
use hmm_backend::pages::Page;
use hmm_backend::residency::{Placed, Residency};

use crate::conformance::bench::{Bench, Checked, pattern, same};
use crate::conformance::{AccessRefused, DeviceAccess, Evidence};

pub fn cookies(bench: &mut Bench) -> Checked {
    // Not aligned: folios of many sizes in one migration.
    for pages in [1..100, 300..431] {
        bench.fill(pages.clone());
        bench.all_to_device(pages)?;
        bench.check_books("after a migration of folios of many sizes")?;
    }
    // In another order than they came.
    let folios = bench.folios(0);
    let (even, odd): (Vec<_>, Vec<_>) = (0..folios.len()).partition(|index| index % 2 == 0);
    for index in even.into_iter().rev().chain(odd) {
        let folio = folios[index].clone();
        let page = Page(folio.start);
        bench.free(folio)?;
        bench
            .check_books("after the free of one folio")
            .map_err(|evidence| evidence.at(page))?;
    }
    Ok(())
}

pub fn split(bench: &mut Bench) -> Checked {
    bench.fill(0..512);
    bench.all_to_device(0..512)?;
    // Cut down to one page by a free, and by a migration; then in the middle of what is left.
    bench.free(77..78)?;
    bench.check_books("after the free of one page of a large folio")?;
    bench.to_system(200..201)?;
    bench.check_books("after the migration of one page of a large folio")?;
    bench.free(255..300)?;
    bench.check_books("after a free across folios")?;
    bench.to_system(0..70)?;
    bench.free(0..40)?;
    bench.check_books("after a migration across folios")?;
    bench.to_system(0..512)?;
    bench.check_books("after the last migration")?;
    for (pages, freed) in [
        (0..40, true),
        (40..77, false),
        (77..78, true),
        (78..255, false),
        (255..300, true),
        (300..512, false),
    ] {
        match freed {
            true => bench.expect_zeros("freed", pages)?,
            false => bench.expect_filled("after the way back", pages)?,
        }
    }
    Ok(())
}

pub fn free_by_guest(bench: &mut Bench) -> Checked {
    bench.fill(0..64);
    bench.to_device(0..64)?;
    let folios = bench.folios(0);
    let before = bench.witness().freed();
    for folio in folios.iter().cloned() {
        bench.free(folio)?;
    }
    bench.check_books("after the free of everything")?;
    let calls = bench.witness().freed() - before;
    same(
        || "calls of page_free".into(),
        0,
        folios.len() as u64,
        calls,
    )?;
    bench.expect_zeros("freed", 0..64)?;
    // The frames can be used again.
    bench.fill(0..64);
    bench.to_device(0..64)?;
    bench.free(0..64)?;
    Ok(())
}

pub fn free_after_migration(bench: &mut Bench) -> Checked {
    bench.fill(0..64);
    for _ in 0..3 {
        bench.to_device(0..64)?;
        bench.to_system(0..64)?;
        bench.check_books("after the way back")?;
    }
    bench.expect_filled("after the way back", 0..64)
}

pub fn eviction(bench: &mut Bench) -> Checked {
    const PAGES: u32 = 64;
    bench.fill(0..PAGES);
    for page in 0..PAGES {
        bench.all_to_device(page..page + 1)?;
    }
    let stats = bench.backend.stats();
    let evicted = stats.to_system.get(&Cause::Eviction).copied();
    if evicted.unwrap_or(0) < 48 {
        let evicted = evicted.unwrap_or(0);
        return Err(Evidence::new("pages evicted", "48 or more", evicted));
    }
    // For a large folio many have to go.
    bench.all_to_device(0..16)?;
    bench.check_books("with device memory full")?;
    bench.to_system(0..PAGES)?;
    bench.expect_filled("after eviction", 0..PAGES)
}

pub fn detach(bench: &mut Bench) -> Checked {
    bench.fill(0..100);
    bench.to_device(0..100)?;
    let id = bench.units[0].id;
    if let Err(error) = bench.backend.detach(id) {
        let evidence = Evidence::new("detaching the device", "every page back", error);
        return Err(evidence);
    }
    bench.check_books("after the device was detached")?;
    if let Some(folio) = bench.folios(0).first() {
        let evidence = Evidence::new("after the device was detached", "system memory", "device");
        return Err(evidence.at(Page(folio.start)));
    }
    bench.expect_filled("after the device was detached", 0..100)
}

pub fn memory_failure(bench: &mut Bench) -> Checked {
    const LOST: u32 = 5;
    bench.fill(0..64);
    bench.to_device(0..64)?;
    let failed = bench.backend.memory_failure(Page(LOST));
    failed.map_err(|error| Evidence::new("reporting lost contents", "no error", error))?;
    bench.check_books("after one page's contents were lost")?;
    let unit = bench.unit();
    let reader: &mut dyn DeviceAccess = match &mut unit.access {
        Some(access) => &mut **access,
        None => &mut unit.device,
    };
    match reader.read(Page(LOST), 0) {
        Err(AccessRefused::Failed(_)) => {}
        Err(AccessRefused::Permission) | Ok(_) => {
            let evidence = Evidence::new("a device's read of lost contents", "a failure", "none");
            return Err(evidence.at(Page(LOST)));
        }
    }
    bench.to_system(0..64)?;
    bench.expect_filled("a neighbour of lost contents", 0..LOST)?;
    bench.expect_filled("a neighbour of lost contents", LOST + 1..64)?;
    // Freed, it is a page like any other.
    bench.free(LOST..LOST + 1)?;
    bench.expect_zeros("freed", LOST..LOST + 1)?;
    bench.fill(LOST..LOST + 1);
    bench.to_device(LOST..LOST + 1)?;
    bench.to_system(LOST..LOST + 1)?;
    bench.expect_filled("used again", LOST..LOST + 1)
}

pub fn two_devices(bench: &mut Bench) -> Checked {
    bench.fill(0..32);
    bench.all_to(0, 0..16)?;
    bench.check_books("with pages on the first device")?;
    bench.all_to(1, 16..32)?;
    bench.check_books("with pages on both devices")?;
    // Each takes pages of the other.
    for (unit, pages) in [(1, 0..4), (0, 16..20)] {
        for page in pages {
            let found = bench.units[unit].device.read(Page(page), 3);
            let found = found.map_err(|e| Evidence::new("a device's read", "contents", e))?;
            let what = || "a page of the other device".to_owned();
            same(what, page, pattern(page, 3), found)?;
        }
        bench.check_books("after one device took pages of the other")?;
    }
    bench.free(8..24)?;
    bench.check_books("after frees on both devices")?;
    let first = bench.units[0].id;
    let gone = bench.backend.detach(first);
    gone.map_err(|error| Evidence::new("detaching the first device", "every page back", error))?;
    bench.check_books("after the first device was detached")?;
    expect_on(bench, 1, 0..4)?;
    bench.to_system(0..32)?;
    bench.expect_filled("after it all", 0..8)?;
    bench.expect_zeros("freed", 8..24)?;
    bench.expect_filled("after it all", 24..32)
}

pub fn between_devices(bench: &mut Bench) -> Checked {
    bench.fill(0..32);
    bench.all_to(0, 0..32)?;
    // Half of a folio on request, and a page of the rest because the other device reads it.
    bench.all_to(1, 0..16)?;
    bench.check_books("after half a folio went to the other device")?;
    expect_on(bench, 1, 0..16)?;
    let found = bench.units[1].device.read(Page(16), 3);
    let found = found.map_err(|e| Evidence::new("a device's read", "contents", e))?;
    let what = || "a page that came from the other device".to_owned();
    same(what, 16, pattern(16, 3), found)?;
    bench.check_books("after the other device read a page")?;
    expect_on(bench, 1, 16..17)?;
    expect_on(bench, 0, 17..32)?;
    // And back, where the folio was.
    bench.all_to(0, 0..17)?;
    bench.check_books("after the pages went back")?;
    expect_on(bench, 0, 0..32)?;
    // Freed on the other device, which has them from the first.
    bench.all_to(1, 0..32)?;
    bench.free(4..8)?;
    bench.check_books("after a free on the other device")?;
    bench.to_system(0..32)?;
    bench.check_books("after all pages came back")?;
    bench.expect_filled("after two devices had it", 0..4)?;
    bench.expect_zeros("freed", 4..8)?;
    bench.expect_filled("after two devices had it", 8..32)
}

/// These pages are in the memory of this subject's device.
fn expect_on(bench: &Bench, unit: usize, pages: std::ops::Range<u32>) -> Checked {
    let id = bench.units[unit].id;
    for page in pages {
        let place = bench.residency(page);
        if !matches!(place, Residency::Device(Placed { device, .. }) if device == id) {
            let evidence = Evidence::new("a page's place", format!("{id:?}"), format!("{place:?}"));
            return Err(evidence.at(Page(page)));
        }
    }
    Ok(())
}
