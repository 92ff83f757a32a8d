//! Faults on pages that CPUs can reach according to their residency words.
//!
//! Usually the page arrived after the access, and the CPU only has to execute its access again. But if the page
//! tables do not agree with the word, the CPU would fault again and again, without an end and without a report.
//! So each such fault checks the page tables; a disagreement is checked once more under the page's lock.

use super::faults::Faults;
use super::retry::Unresolved;
use crate::memory::Presence;
use crate::observe::Counter;
use crate::pages::{Access, FatalCause, Page, PageRange, Permission};
use crate::residency::TryLock;

impl Faults {
    /// Answers a fault on a page that CPUs can reach according to its word: repairs the page tables if they do
    /// not agree, and wakes the CPU. The CPU has the permission for this access.
    pub(crate) fn answer_stale(&self, page: Page, access: Access) -> Result<(), Unresolved> {
        self.core.recorder.add(Counter::FaultsStale, 1);
        if !self.page_tables_agree(page, access)? {
            self.restore(page, access)?;
        }
        self.core.guest.wake_range(PageRange::single(page));
        Ok(())
    }

    /// Returns whether a CPU could access the page without a fault.
    fn page_tables_agree(&self, page: Page, access: Access) -> Result<bool, Unresolved> {
        let presence = self.presence(page)?;
        Ok(presence.there && !(access == Access::Write && presence.protected))
    }

    fn presence(&self, page: Page) -> Result<Presence, Unresolved> {
        self.core.guest.look(page).map_err(|error| {
            let what = format!("looking for it in the page tables: {error}");
            Unresolved::Fatal(FatalCause::Host(what))
        })
    }

    /// Makes page tables and word agree about a page that CPUs cannot reach although its word says so.
    fn restore(&self, page: Page, access: Access) -> Result<(), Unresolved> {
        let TryLock::Locked(lock) = self.core.table.try_lock(page) else {
            // The page is in motion, so the answer of the page tables is not valid any more.
            return Err(Unresolved::Retry);
        };
        let word = self.core.table.word(page);
        let write = access == Access::Write;
        let duplicated = word.residency().duplicated();
        if !word.reached_by_cpus() || write && (word.read_only() || duplicated) {
            // The word has changed since: the CPU's next fault sees the new one.
            return Ok(());
        }
        let presence = self.presence(page)?;
        if presence.there && !write {
            // The page came while this thread took the lock. If it is write-protected, that does not stop a
            // reader, and the protection may be intended.
            return Ok(());
        }
        if presence.there {
            // The host had refused to lift a write protection.
            let lifted = self
                .core
                .guest
                .set_permission(PageRange::single(page), Permission::Writable);
            return lifted.map_err(|error| {
                let what = format!("UFFDIO_WRITEPROTECT, letting CPUs write to it: {error}");
                Unresolved::Fatal(FatalCause::Host(what))
            });
        }
        if !presence.exact {
            // The page may be on swap. Then the CPU's next access brings it back.
            return Ok(());
        }
        if duplicated {
            // The device has a copy; after this, the word says so and the next fault gets it from there.
            drop(lock);
            self.core.drop_system_copy(page);
            return Ok(());
        }
        // The contents are lost: each access fails from now on, until the guest frees the page. A pinned page
        // keeps its word, because devices use it without faults.
        self.core.recorder.add(Counter::PagesVanished, 1);
        let _ = self.core.lose(lock, page);
        Err(Unresolved::Fatal(FatalCause::Vanished))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Backend, BackendConfig};

    /// A page may arrive, protected, after the check that misses it and before the lock is taken.
    #[test]
    fn a_reader_lifts_no_protection() {
        let backend = Backend::new(BackendConfig::new(2 << 20)).unwrap();
        let page = Page(3);
        drop(backend.pin(PageRange::single(page)).unwrap());
        backend
            .set_permission(PageRange::single(page), Permission::ReadOnly)
            .unwrap();
        backend.faults.restore(page, Access::Read).unwrap();
        assert!(backend.faults.presence(page).unwrap().protected);
    }
}
