//! Frees: the guest needs the contents of pages no longer.

use std::io;

use crate::backend::Backend;
use crate::migrate::Source;
use crate::observe::{Counter, Event, EventKind};
use crate::pages::time::Tick;
use crate::pages::{Error, PageRange, PageSet};
use crate::residency::{FolioLock, Residency, Word};

/// Pages that the host did not take back, and why not.
pub(crate) type Refused = (PageRange, io::Error);

impl Backend {
    /// The guest has freed these pages: their contents are dead wherever they are, reads give zeros from
    /// now on. Device pages are never copied back: their frames return to the pool and the driver gets
    /// `page_free`; system memory goes back to the host. Pinned pages are skipped. Sleeps while a page
    /// is in motion. Returns the number of pages that had contents. An error of the host leaves pages with contents; the rest
    /// of the range has been freed.
    pub fn guest_freed(&self, range: PageRange) -> Result<u64, Error> {
        self.check_range(range)?;
        let mut freed = 0;
        let mut refused = None;
        for part in range.split_by_block() {
            freed += self.free_in_block(part, &mut refused);
            self.with_policy(part.start.block(), |policy| policy.freed(part));
        }
        self.recorder.add(Counter::PagesFreed, freed);
        self.recorder
            .event(|| Event::new(self.clock.now(), EventKind::Freed, range));
        match refused {
            None => Ok(freed),
            Some((range, error)) => Err(Error::Discard { range, error }),
        }
    }

    fn free_in_block(&self, part: PageRange, refused: &mut Option<Refused>) -> u64 {
        let mut freed = 0;
        let mut system = Vec::new();
        let mut page = part.start;
        while page < part.end {
            // Never asleep with locks held: two frees that wait for each other's pages would deadlock.
            if self.table.locked(page) {
                freed += self.free_system(std::mem::take(&mut system), refused);
            }
            let lock = match self.table.try_lock(page) {
                crate::residency::TryLock::Locked(lock) => lock,
                crate::residency::TryLock::Busy if system.is_empty() => self.lock_waiting(page),
                crate::residency::TryLock::Busy => continue,
            };
            let next = lock.range().end.min(part.end);
            match lock.word().residency() {
                Residency::System if lock.word().pins() > 0 => {
                    self.recorder.add(Counter::PagesSkippedPinned, 1);
                }
                Residency::System => lock.carve(&|range| range.overlap(part), &mut system),
                Residency::Device { .. }
                | Residency::Coherent { .. }
                | Residency::Duplicated { .. } => {
                    // The driver is told with no other lock held.
                    freed += self.free_system(std::mem::take(&mut system), refused);
                    let inside = |range: PageRange| range.overlap(part);
                    freed += self.drop_on_device(lock, inside, Word::to_untouched, refused);
                }
                Residency::Exclusive(_) => {
                    self.drop_exclusive(lock, Word::to_untouched);
                    freed += 1;
                }
                Residency::Poisoned => {
                    lock.publish_pages(|word| word.to_untouched());
                    freed += 1;
                }
                Residency::Untouched => {}
            }
            page = next;
        }
        freed + self.free_system(system, refused)
    }

    /// Gives the host its memory back, neighbours in one call. Returns how many pages; those that the host does not take
    /// stay as they are.
    fn free_system(&self, mut locks: Vec<FolioLock<'_>>, refused: &mut Option<Refused>) -> u64 {
        self.invalidate_mirrors(locks.iter_mut());
        let mut pages = PageSet::EMPTY;
        for lock in &locks {
            pages = pages.union(&PageSet::of(lock.range()));
        }
        let mut kept = PageSet::EMPTY;
        if let Some(first) = locks.first() {
            let block = first.head().block();
            for run in pages.runs() {
                let range = PageRange::new(block.page(run.start), block.page(run.end - 1).plus(1));
                if let Err(error) = self.guest.discard(range) {
                    kept.insert_range(run);
                    *refused = Some((range, error));
                }
            }
        }
        for lock in locks {
            if kept.contains(lock.head().index_in_block()) {
                continue;
            }
            // Shared memory never faults: zeros are all there is to it.
            let shared = self.guest.is_shared(lock.head());
            lock.publish_pages(|word| match shared {
                true => word.to_system(Tick::default()),
                false => word.to_untouched(),
            });
        }
        pages.difference(&kept).count() as u64
    }

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
}
