//! Serves the migrations that policies want and that no fault waits for.

use std::sync::Arc;
use std::time::Duration;

use super::prefetch_queue::Prefetch;
use crate::fault::faults::Faults;
use crate::memory::Engine;
use crate::migrate::{
    Device, Leaving, Reason, between_devices, collect_from_devices, to_device, to_system,
};
use crate::observe::{Cause, Counter};
use crate::pages::{Access, BLOCK_PAGES, Block, Page, PageSet, Place};
use crate::policy::{MAX_WISH, Wish};
use crate::residency::{Residency, TryLock};

impl Faults {
    /// Queues a policy's wish, cut to what is possible.
    pub(crate) fn wish(&self, mut wish: Wish) {
        let given = wish.pages;
        let end = wish.pages.end.min(Page(self.core.pages()));
        let most = wish.pages.start.plus(MAX_WISH);
        wish.pages.end = end.min(most).max(wish.pages.start);
        let known = match wish.to {
            Place::System => true,
            Place::Device(id) => self.core.device(id).is_ok(),
        };
        if wish.pages != given || !known || given.is_empty() {
            self.core.recorder.add(Counter::AdviceCut, 1);
        }
        if known && !wish.pages.is_empty() && self.prefetches.add_wish(wish).is_some() {
            self.core.recorder.add(Counter::WishesDropped, 1);
        }
    }

    /// In lockstep, serves what policies wish for, before anything else happens. To be called after a policy was asked.
    pub(crate) fn serve_wishes_in_lockstep(&self) {
        while self.lockstep && self.serve_prefetch() {}
    }

    /// In lockstep, waits until other threads have unlocked the pages of this block: a CPU resumes a moment before the
    /// service thread unlocks the page that it waited for, and the result of a lockstep run must not depend on that
    /// moment. The caller holds no lock. (A model has only one thread.)
    pub(crate) fn settle_in_lockstep(&self, block: Block) {
        if !self.lockstep || self.core.guest.engine() == Engine::Model {
            return;
        }
        let end = block.first_page().plus(BLOCK_PAGES as u32);
        let end = end.min(Page(self.core.pages()));
        let mut at = block.first_page();
        while at < end {
            at = self.core.table.settle(at);
        }
    }

    /// Serves a bounded piece of the queue. Pages that are in motion, held or pinned stay where they are.
    /// Returns false if the queue is empty.
    pub(crate) fn serve_prefetch(&self) -> bool {
        let folio = |page| self.core.table.folio_range(page);
        let Some(prefetch) = self.prefetches.take_piece(folio) else {
            return false;
        };
        let Prefetch {
            block,
            pages,
            duplicate,
            access,
            ..
        } = prefetch;
        self.settle_in_lockstep(block);
        match prefetch.to {
            Place::System => {
                if prefetch.wished {
                    self.invalidate_system_pages(block, &pages);
                }
                self.prefetch_to_system(block, &pages, &duplicate, access);
            }
            Place::Device(id) => {
                // The device may have been detached since.
                if let Ok(device) = self.core.device(id).cloned() {
                    self.prefetch_to_device(&device, block, &pages);
                }
            }
        }
        true
    }

    fn prefetch_to_device(&self, device: &Arc<Device>, block: Block, pages: &PageSet) {
        // As for a fault's prefetch, more than a quarter would evict pages that the device works on.
        let most = (device.capacity() / 4).max(1);
        let on_peers = self.core.on_peers(device, block, pages);
        let movable =
            |index: &usize| on_peers.contains(*index) || self.core.is_movable(block.page(*index));
        let want = (pages.iter().filter(movable).count() as u32).min(most);
        if want == 0 {
            return;
        }
        let room = self.make_room(device, want).min(most);
        let set: PageSet = pages.iter().filter(movable).take(room as usize).collect();
        let reason = Reason::of(Cause::Prefetch);
        let direct = set.intersection(&on_peers);
        if !direct.is_empty() {
            between_devices(&self.core, device, [(block, direct)], reason, None);
        }
        to_device(&self.core, device, [(block, set)], reason);
    }

    /// Takes translations away from devices for those of these pages that are in system memory, so that a
    /// device must fault before it uses them in place again.
    fn invalidate_system_pages(&self, block: Block, pages: &PageSet) {
        let mut locks = Vec::new();
        for page in pages.iter().map(|index| block.page(index)) {
            // A thread that has locked the page takes its translations away itself, or has just found that none
            // need be.
            if self.core.table.word(page).residency() == Residency::System
                && let TryLock::Locked(lock) = self.core.table.try_lock(page)
                && lock.word().residency() == Residency::System
            {
                locks.push(lock);
            }
        }
        self.core.invalidate_mirrors(locks.iter_mut());
    }

    /// Brings pages to system memory because the policy expects accesses to them; pages in `duplicate` stay in
    /// their devices' memories, too. Pages that cannot move now stay where they are.
    pub(crate) fn prefetch_to_system(
        &self,
        block: Block,
        pages: &PageSet,
        duplicate: &PageSet,
        access: Access,
    ) {
        let is = |want: Residency, page| self.core.table.word(page).residency() == want;
        let untouched: PageSet = pages
            .iter()
            .filter(|i| is(Residency::Untouched, block.page(*i)))
            .collect();
        // No fault waits for a prefetched page, so a failed prefetch is dropped.
        let mut ignored = Vec::new();
        if !untouched.is_empty() {
            self.populate(block, &untouched, access, Duration::ZERO, &mut ignored);
        }
        let on_devices = pages.difference(&untouched);
        for (pages, duplicate) in [
            (on_devices.intersection(duplicate), true),
            (on_devices.difference(duplicate), false),
        ] {
            for (device, sources) in
                collect_from_devices(&self.core, [(block, pages)], Leaving::SingleAndFree)
            {
                let reason = Reason {
                    duplicate,
                    ..Reason::of(Cause::Prefetch)
                };
                let _ = to_system(&self.core, device, sources, reason, None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::backend::{Backend, BackendConfig};
    use crate::pages::PageRange;

    /// A vCPU may resume and lead to a wish for a page before the service thread has unlocked it.
    #[test]
    fn a_wish_in_lockstep_waits_until_its_pages_are_unlocked() {
        let mut config = BackendConfig::new(4 << 20);
        config.lockstep = true;
        let backend = Backend::new(config).unwrap();
        let faults = &*backend.faults;
        let (page, table) = (Page(600), &faults.core.table);
        let TryLock::Locked(lock) = table.try_lock(page) else {
            unreachable!("there is one thread")
        };
        thread::scope(|scope| {
            let wisher = scope.spawn(|| {
                faults.wish(Wish {
                    pages: PageRange::new(Page(590), Page(610)),
                    to: Place::System,
                });
                faults.serve_wishes_in_lockstep();
            });
            while !table.word(page).waiters() && !wisher.is_finished() {
                thread::yield_now();
            }
            drop(lock);
        });
        assert_eq!(table.word(page).residency(), Residency::System);
    }
}
