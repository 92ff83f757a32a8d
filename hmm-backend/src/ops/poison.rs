//! Memory failure: contents that are lost.

use crate::backend::Backend;
use crate::pages::{Error, Page, PageRange};
use crate::residency::{FolioLock, Residency, Word};

impl Backend {
    /// The memory behind a page has failed, wherever it is: its contents are lost. From now on every
    /// access by a CPU or a device is fatal, until the guest frees the page. The other pages of its folio are
    /// not affected; the driver gets `page_free`. Sleeps while the page is in motion. Pinned pages are refused:
    /// whoever pinned them uses them without asking.
    pub fn memory_failure(&self, page: Page) -> Result<(), Error> {
        self.check_range(PageRange::single(page))?;
        if self.guest.is_shared(page) {
            return Err(Error::Shared(page));
        }
        self.lose(self.lock_waiting(page), page)
    }

    /// The contents of a page of this folio are lost, wherever they are.
    pub(crate) fn lose(&self, mut lock: FolioLock<'_>, page: Page) -> Result<(), Error> {
        let only = |range: PageRange| u32::from(range.contains(page));
        let mut refused = None;
        match lock.word().residency() {
            // Also of a duplicate: nobody says which copy failed.
            Residency::Device { .. }
            | Residency::Coherent { .. }
            | Residency::Duplicated { .. } => {
                self.drop_on_device(lock, only, Word::to_poisoned, &mut refused);
            }
            Residency::System if lock.word().pins() > 0 => return Err(Error::Pinned(page)),
            Residency::System => {
                self.invalidate_mirrors(std::iter::once(&mut lock));
                let mut failed = Vec::new();
                lock.carve(&only, &mut failed);
                // CPUs that touch the page must fault.
                let range = PageRange::single(page);
                self.guest
                    .discard(range)
                    .map_err(|error| Error::Discard { range, error })?;
                for lock in failed {
                    lock.publish_pages(|word| word.to_poisoned());
                }
            }
            Residency::Exclusive(_) => self.drop_exclusive(lock, Word::to_poisoned),
            Residency::Untouched | Residency::Poisoned => {
                lock.publish_pages(|word| word.to_poisoned());
            }
        }
        match refused {
            None => Ok(()),
            Some((range, error)) => Err(Error::Discard { range, error }),
        }
    }
}
