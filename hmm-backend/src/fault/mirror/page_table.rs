//! A translation table for devices that need nothing special, and the loop in which every device accesses a page.

use std::collections::HashMap;

use super::{DeviceMmu, Mapping, Mirror};
use crate::pages::{Access, MirrorError, Page, PageRange};

/// A [`DeviceMmu`] whose translations can be looked up page by page, so that [`Mirror::access`] works on it.
pub trait TranslationTable: DeviceMmu {
    /// The translation of a page, if the table has one.
    fn get(&self, page: Page) -> Option<&Mapping>;
    /// Enters a translation; it replaces that of the same page.
    fn enter(&mut self, mapping: Mapping);
}

/// The simplest translation table: a hash map of pages.
#[derive(Debug, Default)]
pub struct PageTable(HashMap<Page, Mapping>);

impl DeviceMmu for PageTable {
    fn invalidate(&mut self, pages: PageRange) {
        match (pages.len() as usize) < self.0.len() {
            true => pages.pages().for_each(|page| _ = self.0.remove(&page)),
            false => self.0.retain(|page, _| !pages.contains(*page)),
        }
    }
}

impl TranslationTable for PageTable {
    fn get(&self, page: Page) -> Option<&Mapping> {
        self.0.get(&page)
    }

    fn enter(&mut self, mapping: Mapping) {
        self.0.insert(mapping.page, mapping);
    }
}

impl<M: TranslationTable> Mirror<M> {
    /// Calls `act` with a translation of the page that permits this access. This is the loop in which every device
    /// accesses memory: *lock* the table, *look* for a translation, and if there is none, let go of the lock and take a
    /// *fault*, which enters one; then look again, because the page can be taken away in between.
    ///
    /// While `act` runs, the translation stays valid, and migrations of the page wait. So `act` must be short, and it must not
    /// touch managed memory other than through the translation, nor call the backend. CPUs and other devices change the
    /// bytes at the same time: access them with atomic or volatile operations.
    ///
    /// A device that visits many pages under one lock, or that has a TLB, writes the loop itself with [`Mirror::lock`] and
    /// [`Mirror::fault`]; it asks [`crate::mirror::MirrorGuard::wanted`] after each visit.
    ///
    /// # Errors
    /// The page does not exist, may not be written, cannot be supplied, or the device has been detached.
    ///
    /// # Example
    /// A device that adds to a word of a page:
    /// ```no_run
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicU64, Ordering};
    /// use hmm_backend::{Backend, BackendConfig};
    /// use hmm_backend::driver::{DeviceFolio, Driver};
    /// use hmm_backend::mirror::PageTable;
    /// use hmm_backend::pages::{Access, Page};
    ///
    /// struct Plain;
    /// impl Driver for Plain {
    ///     fn page_free(&self, _: DeviceFolio) {}
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let backend = Backend::new(BackendConfig::new(64 << 20))?;
    /// let device = backend.attach(16 << 20, Arc::new(Plain))?;
    /// let mut mirror = backend.mirror(device, PageTable::default())?;
    /// let before = mirror.access(Page(7), Access::Write, |page| {
    ///     // SAFETY: aligned, and inside a page that stays where it is while this function runs.
    ///     let word = unsafe { AtomicU64::from_ptr(page.host.as_ptr().cast()) };
    ///     word.fetch_add(1, Ordering::SeqCst)
    /// })?;
    /// # let _ = before;
    /// # Ok(()) }
    /// ```
    pub fn access<R>(
        &mut self,
        page: Page,
        access: Access,
        act: impl FnOnce(&Mapping) -> R,
    ) -> Result<R, MirrorError> {
        loop {
            let guard = self.lock();
            let found = guard.get(page);
            if let Some(mapping) = found.filter(|it| access == Access::Read || it.writable) {
                return Ok(act(mapping));
            }
            drop(guard);
            self.fault(page, access, M::enter)?;
        }
    }

    /// The same for a page that no CPU and no other device can reach while `act` runs, for atomic operations made of
    /// several steps.
    ///
    /// # Errors
    /// As of [`Self::access`]; also if the page is pinned or shared.
    pub fn access_exclusively<R>(
        &mut self,
        page: Page,
        act: impl FnOnce(&Mapping) -> R,
    ) -> Result<R, MirrorError> {
        loop {
            let guard = self.lock();
            if let Some(mapping) = guard.get(page).filter(|it| it.exclusive) {
                return Ok(act(mapping));
            }
            drop(guard);
            self.fault_exclusive(page, M::enter)?;
        }
    }
}
