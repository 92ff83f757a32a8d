//! The translations of a replay's device: what it may do with each page without a fault. Shared with the replay, which
//! looks at it for each access.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use hmm_backend::mirror::{DeviceMmu, Mapping, RemoteCounters, Target};
use hmm_backend::pages::{Access, Fidelity, Page, PageRange, Visit};
use parking_lot::{Mutex, MutexGuard};

const READABLE: u8 = 1;
const WRITABLE: u8 = 2;
const REMOTE: u8 = 4;
const ACCESSED: u8 = 8;
const DIRTY: u8 = 16;

/// Visits that are kept until the eviction policy is told of them.
const MOST_VISITS: usize = 4096;

/// One byte for each page, how often pages of system memory were used in place, and visits.
#[derive(Clone)]
pub(super) struct ReplayPageTable {
    entries: Arc<Box<[AtomicU8]>>,
    remote: Arc<Mutex<RemoteCounters>>,
    fidelity: Fidelity,
    visits: Arc<Mutex<Vec<Visit>>>,
    bits_read: Arc<AtomicU64>,
}

impl ReplayPageTable {
    pub(super) fn new(pages: u32, fidelity: Fidelity) -> ReplayPageTable {
        ReplayPageTable {
            entries: super::ledger::zeroed(pages as usize).into(),
            remote: Arc::new(Mutex::new(RemoteCounters::new(pages))),
            fidelity,
            visits: Arc::default(),
            bits_read: Arc::default(),
        }
    }

    /// Notes that the device has accessed a page without a fault, as far as the device tells of that. Returns whether so many
    /// visits are kept that the backend must be told of them.
    #[inline]
    pub(super) fn visit(&self, page: Page, access: Access, times: u32) -> bool {
        match self.fidelity {
            Fidelity::Faults => false,
            Fidelity::Bits => {
                let entry = &self.entries[page.0 as usize];
                let dirty = if access == Access::Write { DIRTY } else { 0 };
                entry.store(entry.load(Relaxed) | ACCESSED | dirty, Relaxed);
                false
            }
            Fidelity::All => {
                let mut visits = self.visits.lock();
                visits.push(Visit {
                    page,
                    access,
                    times,
                });
                visits.len() >= MOST_VISITS
            }
        }
    }

    /// Returns the counters of accesses in place.
    pub(super) fn remote(&self) -> MutexGuard<'_, RemoteCounters> {
        self.remote.lock()
    }

    /// Returns how many accessed bits were read since the last call.
    pub(super) fn take_bits_read(&self) -> u64 {
        self.bits_read.swap(0, Relaxed)
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

    fn fidelity(&self) -> Fidelity {
        self.fidelity
    }

    fn take_bits(&mut self, pages: PageRange, each: &mut dyn FnMut(Page, Access)) {
        self.bits_read.fetch_add(pages.len().into(), Relaxed);
        for page in pages.pages() {
            let entry = &self.entries[page.0 as usize];
            let before = entry.load(Relaxed);
            if before & ACCESSED != 0 {
                entry.store(before & !(ACCESSED | DIRTY), Relaxed);
                let access = match before & DIRTY {
                    0 => Access::Read,
                    _ => Access::Write,
                };
                each(page, access);
            }
        }
    }

    fn take_visits(&mut self, each: &mut dyn FnMut(Visit)) {
        self.visits.lock().drain(..).for_each(each);
    }
}
