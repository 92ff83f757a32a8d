//! The translations of a replay's device: what it may do with each page without a fault. Shared with the replay, which
//! looks at it for each access.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use hmm_backend::{Access, DeviceMmu, Mapping, Page, PageRange};

const READABLE: u8 = 1;
const WRITABLE: u8 = 2;

/// One byte for each page.
#[derive(Clone)]
pub(super) struct PageTable(Arc<[AtomicU8]>);

impl PageTable {
    pub(super) fn new(pages: u32) -> PageTable {
        PageTable((0..pages).map(|_| AtomicU8::new(0)).collect())
    }

    /// Whether the device may access the page so.
    #[inline]
    pub(super) fn permits(&self, page: Page, access: Access) -> bool {
        let needed = match access {
            Access::Read => READABLE,
            Access::Write => WRITABLE,
        };
        let entry = self.0.get(page.0 as usize);
        entry.is_some_and(|entry| entry.load(Relaxed) & needed != 0)
    }

    pub(super) fn map(&self, mapping: &Mapping) {
        let rights = match mapping.writable {
            true => READABLE | WRITABLE,
            false => READABLE,
        };
        self.0[mapping.page.0 as usize].store(rights, Relaxed);
    }
}

impl DeviceMmu for PageTable {
    fn invalidate(&mut self, pages: PageRange) {
        let end = pages.end.0.min(self.0.len() as u32);
        for entry in &self.0[pages.start.0.min(end) as usize..end as usize] {
            entry.store(0, Relaxed);
        }
    }
}
