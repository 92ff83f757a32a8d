//! Exclusive access of one device to a page of system memory, for atomic operations that CPUs must not interleave
//! with: Linux's `make_device_exclusive`.
//!
//! The page moves from the guest's address space to a place of its own, so every CPU access faults. Such a
//! fault, or another device's, *revokes* the access: the device's translation is invalidated, which waits until
//! it is not in use, and the page moves back. The policy's hold gives the device a minimum time, so that both
//! sides make progress.

use std::sync::atomic::Ordering;

use super::core::Core;
use crate::memory::{EngineError, Run};
use crate::observe::Counter;
use crate::pages::time::Tick;
use crate::pages::{DeviceId, FaultError, Frame, Page, PageRange};
use crate::residency::{FolioLock, Residency, TryLock, Word};

fn run(lock: &FolioLock<'_>) -> Run {
    Run {
        page: lock.head(),
        // In that memory, each page has its own offset.
        frame: Frame(lock.head().0),
        pages: lock.range().len(),
        permission: lock.word().permission(),
    }
}

impl Core {
    /// Makes a page of system memory exclusive to a device, and holds it until `until`. Returns an error if the
    /// page is locked, pinned or not in system memory, or if the host cannot move it now.
    pub(crate) fn make_exclusive(
        &self,
        device: DeviceId,
        page: Page,
        until: Tick,
    ) -> Result<(), FaultError> {
        let TryLock::Locked(lock) = self.table.try_lock(page) else {
            return Err(FaultError::Retry);
        };
        if lock.word().residency() != Residency::System || lock.word().pins() > 0 {
            return Err(FaultError::Retry);
        }
        let mut pieces = Vec::new();
        lock.carve(&|range| range.contains(page).into(), &mut pieces);
        let mut taken = Err(FaultError::Retry);
        for mut lock in pieces {
            self.invalidate_mirrors(std::iter::once(&mut lock));
            let run = run(&lock);
            let mut failed = None;
            self.guest
                .take(run, &self.exclusive, |_, error| failed = Some(error));
            if let Some(error) = failed {
                // Remove what the failed call may have left there: it would be in the way of the next attempt.
                let _ = self.exclusive.forget(run.frame, run.pages);
                if error == EngineError::NoMemory {
                    taken = Err(FaultError::OutOfMemory);
                }
                continue;
            }
            // Count the page before other threads can find it by its word.
            self.exclusive_pages.fetch_add(1, Ordering::AcqRel);
            lock.publish_pages(|word| word.to_exclusive(device, until));
            self.recorder.add(Counter::ExclusiveGrants, 1);
            taken = Ok(());
        }
        taken
    }

    /// Moves an exclusive page back to system memory for all CPUs and devices. On an error the page stays
    /// exclusive.
    pub(crate) fn revoke(&self, mut lock: FolioLock<'_>) -> Result<(), EngineError> {
        self.invalidate_mirrors(std::iter::once(&mut lock));
        let run = run(&lock);
        let mut failed = None;
        self.guest
            .give(run, &self.exclusive, |_, error| failed = Some(error));
        if let Some(error) = failed {
            return Err(error);
        }
        // If the host refuses, the service ends soon. Until then, the memory left there is only in the way of
        // the page's next exclusive access.
        let _ = self.exclusive.forget(run.frame, run.pages);
        lock.publish_pages(|word| word.to_system(Tick::default()));
        self.exclusive_pages.fetch_sub(1, Ordering::AcqRel);
        self.recorder.add(Counter::ExclusiveRevocations, 1);
        Ok(())
    }

    /// Drops the contents of an exclusive page and gives the page a new word.
    pub(crate) fn drop_exclusive(&self, mut lock: FolioLock<'_>, word: impl Fn(Word) -> Word) {
        self.invalidate_mirrors(std::iter::once(&mut lock));
        let run = run(&lock);
        // If the host refuses, the same holds as in `revoke`.
        let _ = self.exclusive.forget(run.frame, run.pages);
        lock.publish_pages(word);
        self.exclusive_pages.fetch_sub(1, Ordering::AcqRel);
    }

    /// Revokes exclusive access to the pages of a range for the devices that `whose` accepts. Skips pages that
    /// another thread has locked.
    pub(crate) fn end_exclusive_access(&self, range: PageRange, whose: impl Fn(DeviceId) -> bool) {
        // Return early if no page is exclusive: a check of each page costs as much as the rest of a large
        // migration. The caller does not wait for pages that become exclusive after this check.
        if self.exclusive_pages.load(Ordering::Acquire) == 0 {
            return;
        }
        for page in range.pages() {
            let Residency::Exclusive(device) = self.table.word(page).residency() else {
                continue;
            };
            if let (true, TryLock::Locked(lock)) = (whose(device), self.table.try_lock(page))
                && let Residency::Exclusive(_) = lock.word().residency()
            {
                // On an error the page stays exclusive: a CPU that touches it makes another attempt and gets
                // the error.
                let _ = self.revoke(lock);
            }
        }
    }
}
