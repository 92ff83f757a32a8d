//! The translations of a replay's device: what it may do with each page without a fault. Shared with the replay, which
//! looks at it for each access.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};

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

/// The visits that the eviction policy has not been told of. The replay adds them and, in the same thread, has the backend
/// take them. So loads and stores suffice.
struct Visits {
    /// Each as a number: 30 bits of the page, of which memory has no more, one of whether it is a write, 32 of the times.
    list: Box<[AtomicU64]>,
    len: AtomicUsize,
}

impl Visits {
    fn new() -> Visits {
        Visits {
            list: super::ledger::zeroed(MOST_VISITS),
            len: AtomicUsize::new(0),
        }
    }

    fn is_full(&self) -> bool {
        self.len.load(Relaxed) == MOST_VISITS
    }

    /// Adds a visit. They must not be full.
    fn push(&self, visit: Visit) {
        let write = u64::from(visit.access == Access::Write);
        let packed = u64::from(visit.page.0) << 33 | write << 32 | u64::from(visit.times);
        let len = self.len.load(Relaxed);
        self.list[len].store(packed, Relaxed);
        self.len.store(len + 1, Relaxed);
    }

    /// Calls `each` with the visits, in order, and forgets them.
    fn take(&self, each: &mut dyn FnMut(Visit)) {
        let len = self.len.load(Relaxed);
        self.len.store(0, Relaxed);
        for packed in &self.list[..len] {
            let packed = packed.load(Relaxed);
            let write = packed >> 32 & 1 != 0;
            each(Visit {
                page: Page((packed >> 33) as u32),
                access: if write { Access::Write } else { Access::Read },
                times: packed as u32,
            });
        }
    }
}

/// One byte for each page, how often pages of system memory were used in place, and visits.
#[derive(Clone)]
pub(super) struct ReplayPageTable {
    entries: Arc<Box<[AtomicU8]>>,
    remote: Arc<Mutex<RemoteCounters>>,
    /// Whether the counters ever had a threshold. Without one they count nothing.
    counting: Arc<AtomicBool>,
    fidelity: Fidelity,
    visits: Arc<Visits>,
    bits_read: Arc<AtomicU64>,
}

impl ReplayPageTable {
    pub(super) fn new(pages: u32, fidelity: Fidelity) -> ReplayPageTable {
        ReplayPageTable {
            entries: super::ledger::zeroed(pages as usize).into(),
            remote: Arc::new(Mutex::new(RemoteCounters::new(pages))),
            counting: Arc::default(),
            fidelity,
            visits: Arc::new(Visits::new()),
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
                self.visits.push(Visit {
                    page,
                    access,
                    times,
                });
                self.visits.is_full()
            }
        }
    }

    /// Sets from how many accesses in place on a group of pages is reported.
    pub(super) fn set_threshold(&self, threshold: Option<u32>) {
        if threshold.is_some() || self.counting.load(Relaxed) {
            self.counting.store(true, Relaxed);
            self.remote().set_threshold(threshold);
        }
    }

    /// Returns the counters of accesses in place.
    pub(super) fn remote(&self) -> MutexGuard<'_, RemoteCounters> {
        self.remote.lock()
    }

    /// Returns how many accessed bits were read since the last call.
    pub(super) fn take_bits_read(&self) -> u64 {
        let read = self.bits_read.load(Relaxed);
        self.bits_read.store(0, Relaxed);
        read
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
        if self.counting.load(Relaxed) {
            self.remote().forget(pages);
        }
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
        self.visits.take(each);
    }
}
