//! Drops contents that are no longer needed, wherever they are: freed by the guest, or lost.

use std::io;

use super::core::Core;
use super::device::Contents;
use super::to_system::Source;
use crate::pages::{Error, Page, PageRange};
use crate::residency::{FolioLock, Residency, Word};

/// Pages that the host did not take back, and its error.
pub(crate) type Refused = (PageRange, io::Error);

impl Core {
    /// Drops the contents of the `dead` pages of a device folio: they get new words from `word`, and their
    /// frames return to the pool. `dead` returns how many pages of a range are to be dropped. Returns how many
    /// pages were dropped. If the host does not take back the memory that CPUs reach, the pages stay as they
    /// are, and `refused` gets the error.
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
            // CPUs reach coherent memory, or the system copy of a duplicate.
            if lock.word().reached_by_cpus()
                && let Err(error) = self.guest.discard(lock.range())
            {
                *refused = Some((lock.range(), error));
                continue;
            }
            device.leaving(folio.pages());
            lock.publish_pages(&word);
            device.release(folio, Contents::Dead, &self.recorder);
            pages += u64::from(folio.pages());
        }
        pages
    }

    /// Marks the contents of one page of this folio as lost, wherever they are. Returns an error if the page is
    /// pinned or the host does not take its memory back.
    pub(crate) fn lose(&self, mut lock: FolioLock<'_>, page: Page) -> Result<(), Error> {
        let only = |range: PageRange| u32::from(range.contains(page));
        let mut refused = None;
        match lock.word().residency() {
            // Both copies of a duplicate are dropped, because the report does not say which one failed.
            Residency::Device(_) | Residency::Coherent(_) | Residency::Duplicated(_) => {
                self.drop_on_device(lock, only, Word::to_poisoned, &mut refused);
            }
            Residency::System if lock.word().pins() > 0 => return Err(Error::Pinned(page)),
            Residency::System => {
                self.invalidate_mirrors(std::iter::once(&mut lock));
                let mut failed = Vec::new();
                lock.carve(&only, &mut failed);
                // Discard the page, so that CPUs that touch it fault.
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
