//! The translations of a replay's device: what it may do with each page without a fault. Shared with the replay, which
//! looks at it for each access.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use hmm_backend::mirror::{DeviceMmu, Mapping, RemoteCounters, Target};
use hmm_backend::pages::{Access, Page, PageRange};
use parking_lot::{Mutex, MutexGuard};

const READABLE: u8 = 1;
const WRITABLE: u8 = 2;
const REMOTE: u8 = 4;

/// One byte for each page, and how often pages of system memory were used in place.
#[derive(Clone)]
pub(super) struct ReplayPageTable {
    entries: Arc<Box<[AtomicU8]>>,
    remote: Arc<Mutex<RemoteCounters>>,
}

impl ReplayPageTable {
    pub(super) fn new(pages: u32) -> ReplayPageTable {
        ReplayPageTable {
            entries: super::ledger::zeroed(pages as usize).into(),
            remote: Arc::new(Mutex::new(RemoteCounters::new(pages))),
        }
    }

    /// Returns the counters of accesses in place.
    pub(super) fn remote(&self) -> MutexGuard<'_, RemoteCounters> {
        self.remote.lock()
    }

    /// Whether the page is in system memory, and the device reaches it there.
    pub(super) fn is_remote(&self, page: Page) -> bool {
        let entry = self.entries.get(page.0 as usize);
        entry.is_some_and(|entry| entry.load(Relaxed) & REMOTE != 0)
    }

    /// Whether the device may access the page so.
    #[inline]
    pub(super) fn permits(&self, page: Page, access: Access) -> bool {
        let needed = match access {
            Access::Read => READABLE,
            Access::Write => WRITABLE,
        };
        let entry = self.entries.get(page.0 as usize);
        entry.is_some_and(|entry| entry.load(Relaxed) & needed != 0)
    }

    pub(super) fn map(&self, mapping: &Mapping) {
        let mut entry = READABLE;
        if mapping.writable {
            entry |= WRITABLE;
        }
        if mapping.target == Target::System {
            entry |= REMOTE;
        }
        self.entries[mapping.page.0 as usize].store(entry, Relaxed);
    }
}

impl DeviceMmu for ReplayPageTable {
    fn invalidate(&mut self, pages: PageRange) {
        self.remote().forget(pages);
        let end = pages.end.0.min(self.entries.len() as u32);
        for entry in &self.entries[pages.start.0.min(end) as usize..end as usize] {
            entry.store(0, Relaxed);
        }
    }
}
