//! Contents that are dead, wherever they are: freed by the guest, or lost.

use std::io;

use super::core::Core;
use super::to_system::Source;
use crate::pages::{Error, Page, PageRange};
use crate::residency::{FolioLock, Residency, Word};

/// Pages that the host did not take back, and why not.
pub(crate) type Refused = (PageRange, io::Error);

impl Core {
    /// The contents of the `dead` pages of a device folio are no longer needed: they get new words, and their
    /// frames return to the pool. `dead` says how many pages of a range are. Returns how many there were; those of which the
    /// host does not take what CPUs reach stay as they are.
    pub(crate) fn drop_on_device(
        &self,
        lock: FolioLock<'_>,
        dead: impl Fn(PageRange) -> u32,
        word: impl Fn(Word) -> Word,
        refused: &mut Option<Refused>,
    ) -> u64 {
        let Some((device, source)) = self.device_source(lock) else {
            return 0;
        };
        let mut pieces = Vec::new();
        source.carve(self, device, &dead, &mut pieces);
        let mut pages = 0;
        for mut source in pieces {
            self.invalidate_mirrors(std::iter::once(&mut source.lock));
            let Source { lock, folio } = source;
            // Coherent memory, or the other copy of a duplicate.
            if lock.word().reached_by_cpus()
                && let Err(error) = self.guest.discard(lock.range())
            {
                *refused = Some((lock.range(), error));
                continue;
            }
            device.leaving(folio.pages());
            lock.publish_pages(&word);
            device.release(folio, true, true, &self.recorder);
            pages += u64::from(folio.pages());
        }
        pages
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
