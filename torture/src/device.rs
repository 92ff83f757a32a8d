//! A device that comes and goes during a torture: adds to counters with exclusive access, and reads.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hmm_backend::Backend;
use hmm_backend::mirror::{DeviceMmu, Mapping, Mirror, MirrorError};
use hmm_backend::pages::{Access, DeviceId, Page, PageRange};

use super::driver::{CookieDriver, FailingDriver};

/// 8-byte words in a page.
pub(crate) const WORDS: u64 = 512;

/// The device's translations.
#[derive(Default)]
pub(crate) struct Table(HashMap<Page, Mapping>);

impl DeviceMmu for Table {
    fn invalidate(&mut self, pages: PageRange) {
        match pages.len() {
            ..16 => pages.pages().for_each(|page| {
                self.0.remove(&page);
            }),
            _ => self.0.retain(|page, _| !pages.contains(*page)),
        }
    }
}

/// See the module.
pub(crate) struct ExtraDevice {
    pub(crate) id: DeviceId,
    pub(crate) books: Arc<FailingDriver>,
    pub(crate) cookies: Arc<CookieDriver>,
    mirror: Mirror<Table>,
}

impl ExtraDevice {
    pub(crate) fn new(
        backend: &Arc<Backend>,
        id: DeviceId,
        books: Arc<FailingDriver>,
        cookies: Arc<CookieDriver>,
    ) -> Result<ExtraDevice, hmm_backend::Error> {
        Ok(ExtraDevice {
            id,
            books,
            cookies,
            mirror: backend.mirror(id, Table::default())?,
        })
    }

    /// Calls `work` with the words of a page while it cannot be taken away.
    pub(crate) fn read<R>(
        &mut self,
        page: Page,
        work: impl FnOnce(&[AtomicU64; WORDS as usize]) -> R,
    ) -> Result<R, MirrorError> {
        loop {
            let guard = self.mirror.lock();
            if let Some(mapping) = guard.0.get(&page) {
                return Ok(work(words(mapping)));
            }
            drop(guard);
            self.mirror.fault(page, Access::Read, |table, mapping| {
                table.0.insert(mapping.page, mapping);
            })?;
        }
    }

    /// Adds to a page's first word in steps that another access could come between, if the device were not alone.
    /// Returns what was there.
    pub(crate) fn add_exclusively(&mut self, page: Page, value: u64) -> Result<u64, MirrorError> {
        loop {
            let guard = self.mirror.lock();
            // In the device's own memory, or exclusive: neither CPUs nor other devices reach it.
            if let Some(mapping) = guard.0.get(&page)
                && mapping.exclusive
            {
                let word = &words(mapping)[0];
                let found = word.load(Ordering::SeqCst);
                std::thread::yield_now();
                word.store(found.wrapping_add(value), Ordering::SeqCst);
                return Ok(found);
            }
            drop(guard);
            self.mirror.fault_exclusive(page, |table, mapping| {
                table.0.insert(mapping.page, mapping);
            })?;
        }
    }
}

fn words(mapping: &Mapping) -> &[AtomicU64; WORDS as usize] {
    // SAFETY: the host page is mapped as long as the backend lives, which the mirror keeps; it is aligned to a page and
    // as large as the array; all others that access it do so in atomic words. The caller holds the guard, so it is
    // the page that the translation says.
    unsafe { &*mapping.host.as_ptr().cast() }
}
