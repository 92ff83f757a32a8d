//! Pins: pages that must stay in system memory because somebody uses them with plain loads and stores.

use std::sync::Arc;

use crate::backend::Backend;
use crate::observe::{Event, EventKind};
use crate::pages::{Access, Error, PAGE_SIZE, Page, PageRange};
use crate::residency::{PinError, Residency};

/// Pages kept in system memory. Dropping it lets them migrate again.
pub struct Pinned {
    backend: Arc<Backend>,
    range: PageRange,
}

impl Backend {
    /// Brings pages into system memory, filling untouched ones, and keeps them there while the guard lives.
    /// Device pages cannot be pinned where they are: they migrate first. The calling thread sleeps as long
    /// as that takes, so never call it from a driver.
    pub fn pin(self: &Arc<Self>, range: PageRange) -> Result<Pinned, Error> {
        self.check_range(range)?;
        // Grows with each page, so that an error lets go of exactly the pages pinned so far.
        let mut pinned = Pinned {
            backend: self.clone(),
            range: PageRange::new(range.start, range.start),
        };
        for page in range.pages() {
            self.pin_page(page)?;
            pinned.range.end = page.plus(1);
        }
        self.recorder
            .event(|| Event::new(self.clock.now(), EventKind::Pinned, range));
        Ok(pinned)
    }

    fn pin_page(&self, page: Page) -> Result<(), Error> {
        loop {
            match self.table.pin(page) {
                Ok(()) => return Ok(()),
                Err(PinError::TooMany) => return Err(Error::TooManyPins(page)),
                Err(PinError::InFolio) => self.single_out(page),
                // Between fault-in and pin the page may leave again: then once more.
                Err(PinError::NotNow) => self
                    .fault_in(page, Access::Write, None)
                    .map_err(|cause| Error::Fatal { page, cause })?,
            }
        }
    }
}

impl Backend {
    /// Cuts the folio of a page that is in system memory, so that the page is single.
    fn single_out(&self, page: Page) {
        let lock = self.lock_waiting(page);
        if lock.word().residency() == Residency::System {
            lock.carve(&|range| range.contains(page).into(), &mut Vec::new());
        }
    }
}

impl Pinned {
    /// Host address of the first byte; the pages are neighbours and present while the guard lives.
    pub fn host(&self) -> *mut u8 {
        let (base, _) = self.backend.host_memory();
        base.wrapping_add(self.range.start.offset() as usize)
    }

    /// Number of bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        u64::from(self.range.len()) * PAGE_SIZE
    }

    /// The pages.
    pub fn range(&self) -> PageRange {
        self.range
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let backend = &self.backend;
        backend
            .recorder
            .event(|| Event::new(backend.clock.now(), EventKind::Unpinned, self.range));
        self.range
            .pages()
            .for_each(|page| self.backend.table.unpin(page));
    }
}
