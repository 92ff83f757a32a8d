//! `hmm-backend` without a virtual machine: a plain process has a "device" of 16 pages, and its memory moves there
//! when the device touches it and back when one of the process's own threads does.
//!
//!     cargo run -p hmm-backend --example process

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use hmm_backend::{
    Access, Backend, BackendConfig, DeviceFolio, DeviceMmu, Driver, FaultError, Finalized, Mapping,
    MigrateError, PAGE_SIZE, Page, PageRange, ServiceConfig, ToDevice, ToSystem,
};

/// The driver: numbers its folios, and says what happens to them.
#[derive(Default)]
struct Talkative {
    folios: AtomicU64,
    returns: AtomicU64,
    frees: AtomicU64,
}

impl Driver for Talkative {
    fn migrate_to_device(&self, mut migration: ToDevice<'_>) -> Result<Finalized, MigrateError> {
        // The cookie is the driver's own: here, a serial number.
        migration.set_cookies(|_| self.folios.fetch_add(1, SeqCst));
        let copied = migration.copy()?; // Nothing can change the pages any more: program the hardware here.
        Ok(copied.commit().finalize())
    }

    fn migrate_to_ram(&self, migration: ToSystem<'_>) -> Result<Finalized, FaultError> {
        self.returns.fetch_add(1, SeqCst);
        migration.run()
    }

    fn page_free(&self, _: DeviceFolio) {
        self.frees.fetch_add(1, SeqCst);
    }
}

/// The device's page table: it may use an entry until it is told to forget it.
#[derive(Default)]
struct Table(HashMap<Page, Mapping>);

impl DeviceMmu for Table {
    fn invalidate(&mut self, pages: PageRange) {
        self.0.retain(|page, _| !pages.contains(*page));
    }
}

/// A word in memory that others change at the same time.
///
/// # Safety
/// The address must be one of the backend's, which must outlive the reference.
unsafe fn word<'a>(page: *mut u8) -> &'a AtomicU64 {
    // SAFETY: pages are aligned, and all accesses to the word are atomic; the rest is the caller's promise.
    unsafe { AtomicU64::from_ptr(page.cast()) }
}

/// The example; what happens is written to `out`.
pub fn run(out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let backend = Backend::new(BackendConfig::new(2 << 20))?;
    let driver = Arc::new(Talkative::default());
    let device = backend.attach(16 * PAGE_SIZE, driver.clone())?;
    let _service = backend.start_service(ServiceConfig::default(), |fault| {
        eprintln!("{fault:?}");
        std::process::abort();
    })?;

    // This thread is a CPU: it writes a number into each of 64 pages.
    let (base, _) = backend.host_memory();
    // SAFETY: all pages lie inside managed memory, and the backend lives until the end of this function.
    let cpu = |page: u32| unsafe { word(base.add(Page(page).offset() as usize)) };
    (0..64).for_each(|page| cpu(page).store(page.into(), SeqCst));
    writeln!(out, "the CPU has written 64 pages")?;

    // The device doubles each number. Its memory is smaller: pages that came first are evicted.
    let mut mirror = backend.mirror(device, Table::default())?;
    for page in (0..64).map(Page) {
        loop {
            let guard = mirror.lock();
            if let Some(entry) = guard.0.get(&page).filter(|entry| entry.writable) {
                // SAFETY: the entry is valid under the guard, and the backend outlives it.
                let word = unsafe { word(entry.host.as_ptr()) };
                word.fetch_add(word.load(SeqCst), SeqCst);
                break;
            }
            drop(guard);
            // A device fault: migrates the page to the device and enters it into the table.
            mirror.fault(page, Access::Write, |table, entry| {
                table.0.insert(entry.page, entry);
            })?;
        }
    }
    let on_device = |page: &Page| {
        let word = backend.word(*page).expect("a page of ours");
        matches!(word.residency(), hmm_backend::Residency::Device { .. })
    };
    let there = (0..64).map(Page).filter(on_device).count();
    writeln!(
        out,
        "the device has doubled them; {there} pages are in its memory"
    )?;

    // Reading is enough to get them back.
    let sum: u64 = (0..64).map(|page| cpu(page).load(SeqCst)).sum();
    writeln!(
        out,
        "the CPU reads the sum {sum}, as it should be: {}",
        2 * 63 * 64 / 2
    )?;

    // A device that goes away gives everything back first, so that the figures are final.
    backend.detach(device)?;
    let stats = backend.stats();
    writeln!(
        out,
        "faults: {} by the CPU, {} by the device",
        stats.cpu_faults, stats.device_faults
    )?;
    writeln!(
        out,
        "pages migrated: {} to the device, {} back, of which evicted: {}",
        stats.pages_to_device(),
        stats.pages_to_system(),
        stats.to_system[&hmm_backend::Cause::Eviction],
    )?;
    let count = |counter: &AtomicU64| counter.load(SeqCst);
    let (folios, returns) = (count(&driver.folios), count(&driver.returns));
    writeln!(
        out,
        "the driver has seen {folios} folios come, and was asked {returns} times to give some back"
    )?;
    writeln!(out, "page_free calls: {}", count(&driver.frees))?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    run(&mut io::stdout())
}
