//! Faults on pages that CPUs can reach, by their words.
//!
//! Usually the page arrived between the access and now, and the CPU only has to execute its access again. But if the page
//! tables do not agree with the word, the CPU would fault again, and again, without an end and without a word. So each such fault
//! is a look at the page tables; what they say is checked once more under the page's lock.

use super::faults::Faults;
use super::retry::Unresolved;
use crate::memory::{Engine, Presence};
use crate::observe::Counter;
use crate::pages::{FatalCause, Page, PageRange};
use crate::residency::TryLock;

impl Faults {
    /// Answers a fault on a page that CPUs can reach, by its word: wakes the CPU, if that helps. With `write`, the CPU wants to
    /// write, and may.
    pub(crate) fn answer_stale(&self, page: Page, write: bool) -> Result<(), Unresolved> {
        self.core.recorder.add(Counter::FaultsStale, 1);
        if !self.page_tables_agree(page, write)? {
            self.restore(page, write)?;
        }
        self.core.guest.wake_range(PageRange::single(page));
        Ok(())
    }

    /// Whether a CPU's access to the page would be no fault.
    fn page_tables_agree(&self, page: Page, write: bool) -> Result<bool, Unresolved> {
        // A model's page tables are its words: a page that came while the fault was put off is there.
        if self.core.guest.engine() == Engine::Model {
            return Ok(true);
        }
        let presence = self.presence(page)?;
        Ok(presence.there && !(write && presence.protected))
    }

    fn presence(&self, page: Page) -> Result<Presence, Unresolved> {
        self.core.guest.look(page).map_err(|error| {
            let what = format!("looking for it in the page tables: {error}");
            Unresolved::Fatal(FatalCause::Host(what))
        })
    }

    /// Has page tables and word agree about a page that CPUs cannot reach although its word says so.
    fn restore(&self, page: Page, write: bool) -> Result<(), Unresolved> {
        let TryLock::Locked(lock) = self.core.table.try_lock(page) else {
            // What the page tables said was about a page in motion.
            return Err(Unresolved::Retry);
        };
        let word = self.core.table.word(page);
        let duplicated = word.residency().duplicated();
        if !word.reached_by_cpus() || write && (word.read_only() || duplicated) {
            // It has changed since: the CPU's next fault will find that.
            return Ok(());
        }
        let presence = self.presence(page)?;
        if presence.there && !write {
            // It came while this thread took the lock. A protection keeps out writers alone, and may belong to it.
            return Ok(());
        }
        if presence.there {
            // The host had refused to lift a protection.
            let lifted = self.core.guest.protect(PageRange::single(page), false);
            return lifted.map_err(|error| {
                let what = format!("UFFDIO_WRITEPROTECT, letting CPUs write to it: {error}");
                Unresolved::Fatal(FatalCause::Host(what))
            });
        }
        if !presence.exact {
            // It may be on swap. The CPU finds out by itself.
            return Ok(());
        }
        if duplicated {
            // The device has a copy, and faults find it when the word says so.
            drop(lock);
            self.core.drop_system_copy(page);
            return Ok(());
        }
        // From now on each access fails, until the guest frees the page. A pinned page keeps its word, because devices
        // use it without asking.
        self.core.recorder.add(Counter::PagesVanished, 1);
        let _ = self.core.lose(lock, page);
        Err(Unresolved::Fatal(FatalCause::Vanished))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Backend, BackendConfig};

    /// A page may come, protected, between the look that misses it and the lock.
    #[test]
    fn a_reader_lifts_no_protection() {
        let backend = Backend::new(BackendConfig::new(2 << 20)).unwrap();
        let page = Page(3);
        drop(backend.pin(PageRange::single(page)).unwrap());
        backend
            .set_read_only(PageRange::single(page), true)
            .unwrap();
        backend.faults.restore(page, false).unwrap();
        assert!(backend.faults.presence(page).unwrap().protected);
    }
}
