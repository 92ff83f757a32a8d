//! Exclusive access of one device to a page of system memory, for atomic operations that CPUs must not interleave
//! with: Linux's `make_device_exclusive`.
//!
//! The page leaves the guest's address space for a place of its own, so every CPU access faults; such a fault,
//! or another device's, *revokes*: the device's translation is invalidated, which waits until it is not in use, and the page
//! goes back. The policy's hold gives the device a minimum time, so that both sides make progress.

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
        // Each page has its own place there.
        frame: Frame(lock.head().0),
        pages: lock.range().len(),
        read_only: lock.word().read_only(),
    }
}

impl Core {
    /// Gives a device a page of system memory for itself, until the tick at least. An error if that cannot be done just now.
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
                // What may be in the way there, so that the next attempt finds none.
                let _ = self.exclusive.forget(run.frame, run.pages);
                if error == EngineError::NoMemory {
                    taken = Err(FaultError::OutOfMemory);
                }
                continue;
            }
            // Counted before it can be found.
            self.exclusive_pages.fetch_add(1, Ordering::AcqRel);
            lock.publish_pages(|word| word.to_exclusive(device, until));
            self.recorder.add(Counter::ExclusiveGrants, 1);
            taken = Ok(());
        }
        taken
    }

    /// Gives an exclusive page back to everybody. On an error it stays as it is.
    pub(crate) fn revoke(&self, mut lock: FolioLock<'_>) -> Result<(), EngineError> {
        self.invalidate_mirrors(std::iter::once(&mut lock));
        let run = run(&lock);
        let mut failed = None;
        self.guest
            .give(run, &self.exclusive, |_, error| failed = Some(error));
        if let Some(error) = failed {
            return Err(error);
        }
        // A failure of the host ends the service; until then, what is left there is in the way of the next exclusive access only.
        let _ = self.exclusive.forget(run.frame, run.pages);
        lock.publish_pages(|word| word.to_system(Tick::default()));
        self.exclusive_pages.fetch_sub(1, Ordering::AcqRel);
        self.recorder.add(Counter::ExclusiveRevocations, 1);
        Ok(())
    }

    /// The contents of an exclusive page are no longer needed.
    pub(crate) fn drop_exclusive(&self, mut lock: FolioLock<'_>, word: impl Fn(Word) -> Word) {
        self.invalidate_mirrors(std::iter::once(&mut lock));
        let run = run(&lock);
        // As above.
        let _ = self.exclusive.forget(run.frame, run.pages);
        lock.publish_pages(word);
        self.exclusive_pages.fetch_sub(1, Ordering::AcqRel);
    }

    /// Revokes exclusive access to the pages of a range that `whose` says yes to. Pages that somebody is
    /// at work on are left to them.
    pub(crate) fn end_exclusive_access(&self, range: PageRange, whose: impl Fn(DeviceId) -> bool) {
        // Looking at each page costs as much as the rest of a large migration. Who becomes exclusive after this
        // look came after the caller.
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
                // Left exclusive on an error: a CPU that wants it will try again, and be told.
                let _ = self.revoke(lock);
            }
        }
    }
}
