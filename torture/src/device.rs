//! A device that comes and goes during a torture: adds to counters with exclusive access, and reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hmm_backend::Backend;
use hmm_backend::mirror::{Mapping, Mirror, MirrorError, PageTable};
use hmm_backend::pages::{Access, DeviceId, Page};
use hmm_backend::testing::CheckedDriver;

use super::driver::FailingDriver;

/// 8-byte words in a page.
pub(crate) const WORDS: u64 = 512;

/// See the module.
pub(crate) struct ExtraDevice {
    pub(crate) id: DeviceId,
    pub(crate) books: Arc<FailingDriver>,
    pub(crate) cookies: Arc<CheckedDriver>,
    mirror: Mirror<PageTable>,
}

impl ExtraDevice {
    pub(crate) fn new(
        backend: &Arc<Backend>,
        id: DeviceId,
        books: Arc<FailingDriver>,
        cookies: Arc<CheckedDriver>,
    ) -> Result<ExtraDevice, hmm_backend::Error> {
        Ok(ExtraDevice {
            id,
            books,
            cookies,
            mirror: backend.mirror(id, PageTable::default())?,
        })
    }

    /// Calls `work` with the words of a page while it cannot be taken away.
    pub(crate) fn read<R>(
        &mut self,
        page: Page,
        work: impl FnOnce(&[AtomicU64; WORDS as usize]) -> R,
    ) -> Result<R, MirrorError> {
        let read = |mapping: &Mapping| work(words(mapping));
        self.mirror.access(page, Access::Read, read)
    }

    /// Adds to a page's first word in steps that another access could come between, if the device were not alone.
    /// Returns what was there.
    pub(crate) fn add_exclusively(&mut self, page: Page, value: u64) -> Result<u64, MirrorError> {
        self.mirror.access_exclusively(page, |mapping| {
            let word = &words(mapping)[0];
            let found = word.load(Ordering::SeqCst);
            std::thread::yield_now();
            word.store(found.wrapping_add(value), Ordering::SeqCst);
            found
        })
    }
}

fn words(mapping: &Mapping) -> &[AtomicU64; WORDS as usize] {
    // SAFETY: the host page is mapped as long as the backend lives, which the mirror keeps; it is aligned to a page and
    // as large as the array; all others that access it do so in atomic words. The caller holds the guard, so it is
    // the page that the translation says.
    unsafe { &*mapping.host.as_ptr().cast() }
}
