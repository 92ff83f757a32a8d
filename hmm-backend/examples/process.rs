//! Uses `hmm-backend` without a virtual machine: a plain process has a "device" with 16 pages of memory. Pages
//! of the process migrate there when the device touches them, and back when a thread of the process touches
//! them.
//!
//!     cargo run -p hmm-backend --example process

use std::error::Error;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use hmm_backend::driver::{
    DeviceFolio, Driver, FaultError, Finalized, MigrateError, ToDevice, ToSystem,
};
use hmm_backend::mirror::PageTable;
use hmm_backend::pages::{Access, PAGE_SIZE, Page};
use hmm_backend::service::ServiceConfig;
use hmm_backend::{Backend, BackendConfig};

/// The driver: numbers its folios and counts its calls.
#[derive(Default)]
struct Talkative {
    folios: AtomicU64,
    returns: AtomicU64,
    frees: AtomicU64,
}

impl Driver for Talkative {
    fn migrate_to_device(&self, mut migration: ToDevice<'_>) -> Result<Finalized, MigrateError> {
        // The driver is free to choose the cookie: here it is a serial number.
        migration.set_cookies(|_| self.folios.fetch_add(1, SeqCst));
        let copied = migration.copy()?; // CPUs and devices cannot reach the pages now: program the hardware here.
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

/// Returns the first word of a page, which other threads change at the same time.
///
/// # Safety
/// The address must be one of the backend's, which must outlive the reference.
unsafe fn word<'a>(page: *mut u8) -> &'a AtomicU64 {
    // SAFETY: pages are aligned, and all threads access the word atomically; the caller promises the rest.
    unsafe { AtomicU64::from_ptr(page.cast()) }
}

/// Runs the example and writes to `out` what happens.
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

    // The device doubles each number. Its memory is smaller than 64 pages, so the pages that came first are
    // evicted.
    let mut mirror = backend.mirror(device, PageTable::default())?;
    for page in (0..64).map(Page) {
        // The first access is a device fault: it migrates the page to the device and enters it into the table.
        mirror.access(page, Access::Write, |entry| {
            // SAFETY: the entry is valid until this function returns, and the backend outlives it.
            let word = unsafe { word(entry.host.as_ptr()) };
            word.fetch_add(word.load(SeqCst), SeqCst)
        })?;
    }
    let on_device = |page: &Page| {
        let word = backend.word(*page).expect("the page is in managed memory");
        matches!(
            word.residency(),
            hmm_backend::residency::Residency::Device(_)
        )
    };
    let there = (0..64).map(Page).filter(on_device).count();
    writeln!(
        out,
        "the device has doubled them; {there} pages are in its memory"
    )?;

    // A CPU's read brings each page back.
    let sum: u64 = (0..64).map(|page| cpu(page).load(SeqCst)).sum();
    writeln!(
        out,
        "the CPU reads the sum {sum}, as it should be: {}",
        2 * 63 * 64 / 2
    )?;

    // A detach brings all pages back first, so that the figures are final.
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
        stats.to_system[&hmm_backend::observe::Cause::Eviction],
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
