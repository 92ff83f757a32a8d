//! The driver of a replay's devices: does nothing to migrations but keep accounts of them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use hmm_backend::{
    DeviceFolio, Driver, FaultError, Finalized, MigrateError, PAGE_SIZE, Page, PageRange, ToDevice,
    ToSystem,
};

use crate::returns::Returns;

/// Set from a page's arrival somewhere until somebody accesses it. The other bits are its [`Returns`].
const UNUSED: u32 = 1 << 31;

/// Four bytes for each page, and sums.
pub(super) struct Ledger {
    pages: Box<[AtomicU32]>,
    transfers: AtomicU64,
    to_device: AtomicU64,
    to_system: AtomicU64,
    unused: AtomicU64,
}

impl Ledger {
    pub(super) fn new(pages: u32) -> Ledger {
        Ledger {
            pages: (0..pages).map(|_| AtomicU32::new(0)).collect(),
            transfers: AtomicU64::new(0),
            to_device: AtomicU64::new(0),
            to_system: AtomicU64::new(0),
            unused: AtomicU64::new(0),
        }
    }

    /// Somebody accesses the page.
    #[inline]
    pub(super) fn used(&self, page: Page) {
        let cell = &self.pages[page.0 as usize];
        let state = cell.load(Relaxed);
        if state & UNUSED != 0 {
            cell.store(state & !UNUSED, Relaxed);
        }
    }

    /// Pages leave where they were: those that nobody has accessed there moved for nothing.
    fn leave(&self, pages: PageRange) {
        for page in pages.pages() {
            let cell = &self.pages[page.0 as usize];
            let state = cell.load(Relaxed);
            if state & UNUSED != 0 {
                self.unused.fetch_add(1, Relaxed);
            }
            cell.store(state | UNUSED, Relaxed);
        }
    }

    /// The next contents of these pages have another history.
    pub(super) fn freed(&self, pages: PageRange) {
        for page in pages.pages() {
            let cell = &self.pages[page.0 as usize];
            let returns = Returns::from_bits(cell.load(Relaxed));
            cell.store(returns.freed().bits(), Relaxed);
        }
    }

    /// Pages come to a device, also those without contents, which left nothing.
    fn arrive(&self, pages: PageRange) {
        for page in pages.pages() {
            let cell = &self.pages[page.0 as usize];
            let returns = Returns::from_bits(cell.load(Relaxed));
            cell.store(returns.arrived().bits() | UNUSED, Relaxed);
        }
    }

    /// Transfers so far, and their pages.
    pub(super) fn transferred(&self) -> (u64, u64) {
        let pages = self.to_device.load(Relaxed) + self.to_system.load(Relaxed);
        (self.transfers.load(Relaxed), pages)
    }

    /// Bytes transferred to devices and to the system.
    pub(super) fn bytes(&self) -> (u64, u64) {
        let bytes = |pages: &AtomicU64| pages.load(Relaxed) * PAGE_SIZE;
        (bytes(&self.to_device), bytes(&self.to_system))
    }

    pub(super) fn unused(&self) -> u64 {
        self.unused.load(Relaxed)
    }

    pub(super) fn thrashing(&self) -> u64 {
        let thrashes = |cell: &&AtomicU32| Returns::from_bits(cell.load(Relaxed)).is_thrashing();
        self.pages.iter().filter(thrashes).count() as u64
    }
}

impl Driver for Ledger {
    fn migrate_to_device(&self, migration: ToDevice<'_>) -> Result<Finalized, MigrateError> {
        let mut pages = 0;
        for range in migration.contents() {
            self.leave(range);
            pages += u64::from(range.len());
        }
        for folio in migration.folios() {
            let range = PageRange::with_len(folio.page, folio.pages());
            self.arrive(range);
        }
        self.to_device.fetch_add(pages, Relaxed);
        self.transfers.fetch_add(u64::from(pages > 0), Relaxed);
        migration.run()
    }

    fn migrate_to_ram(&self, migration: ToSystem<'_>) -> Result<Finalized, FaultError> {
        let mut pages = 0;
        for range in migration.contents() {
            pages += u64::from(range.len());
            // A duplicate leaves nothing.
            if !migration.keeps_frames() {
                self.leave(range);
            }
        }
        if !migration.keeps_frames() {
            for folio in migration.folios() {
                let range = PageRange::with_len(folio.page, folio.pages());
                for page in range.pages() {
                    let cell = &self.pages[page.0 as usize];
                    let returns = Returns::from_bits(cell.load(Relaxed));
                    cell.store(returns.left().bits() | UNUSED, Relaxed);
                }
            }
        }
        self.to_system.fetch_add(pages, Relaxed);
        self.transfers.fetch_add(u64::from(pages > 0), Relaxed);
        migration.run()
    }

    fn page_free(&self, _: DeviceFolio) {}
}
