//! Pins keep pages in system memory while the holder of the pin uses them with plain loads and stores.

use std::sync::Arc;

use crate::fault::Faults;
use crate::migrate::Core;
use crate::observe::{Event, EventKind};
use crate::pages::{Access, Error, PAGE_SIZE, Page, PageRange};
use crate::residency::{PinError, Residency};

/// Pages kept in system memory. Dropping it lets them migrate again.
pub struct Pinned {
    faults: Arc<Faults>,
    range: PageRange,
}

impl Pinned {
    /// See [`crate::Backend::pin`].
    pub(crate) fn new(faults: &Arc<Faults>, range: PageRange) -> Result<Pinned, Error> {
        let core = &faults.core;
        core.check_range(range)?;
        // Grows with each pinned page, so that its drop after an error unpins exactly the pages pinned so far.
        let mut pinned = Pinned {
            faults: faults.clone(),
            range: PageRange::new(range.start, range.start),
        };
        for page in range.pages() {
            pin_page(faults, page)?;
            pinned.range.end = page.plus(1);
        }
        core.recorder
            .event(|| Event::new(core.clock.now(), EventKind::Pinned, range));
        Ok(pinned)
    }

    /// Returns the host address of the first byte. The pages are contiguous and present while the guard lives.
    pub fn host(&self) -> *mut u8 {
        let base = self.faults.core.guest.mapping().start() as *mut u8;
        base.wrapping_add(self.range.start.offset() as usize)
    }

    /// Returns the number of bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        u64::from(self.range.len()) * PAGE_SIZE
    }

    /// Returns the pages.
    pub fn range(&self) -> PageRange {
        self.range
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let core = &self.faults.core;
        core.recorder
            .event(|| Event::new(core.clock.now(), EventKind::Unpinned, self.range));
        self.range.pages().for_each(|page| core.table.unpin(page));
    }
}

fn pin_page(faults: &Faults, page: Page) -> Result<(), Error> {
    loop {
        match faults.core.table.pin(page) {
            Ok(()) => return Ok(()),
            Err(PinError::TooMany) => return Err(Error::TooManyPins(page)),
            Err(PinError::InFolio) => single_out(&faults.core, page),
            // The page may leave again between the fault-in and the pin: the loop tries once more.
            Err(PinError::NotNow) => faults
                .fault_in(page, Access::Write, None)
                .map_err(|cause| Error::Fatal { page, cause })?,
        }
    }
}

/// Cuts the folio of a page in system memory so that the page is a folio of its own, which can be pinned.
fn single_out(core: &Core, page: Page) {
    let lock = core.lock_waiting(page);
    if lock.word().residency() == Residency::System {
        lock.carve(&|range| range.contains(page).into(), &mut Vec::new());
    }
}
