//! Wishes of policies: migrations that nobody waits for. They are queued by whoever asked the policy, and served by
//! the service threads when no fault is waiting.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::Backend;
use crate::host::doorbell::Doorbell;
use crate::memory::HostFailures;
use crate::migrate::{Device, Reason};
use crate::observe::{Cause, Counter};
use crate::pages::{Access, Error, Page, PageRange, PageSet, Place};
use crate::policy::{MAX_WISH, Wish};
use crate::residency::{Residency, TryLock};

/// More is not worth remembering: the newest wishes are about where the guest is now.
const QUEUE: usize = 256;
/// Pages served between two looks for demand.
const PIECE: u32 = 128;

/// Wishes that wait.
pub(crate) struct Wishes {
    queue: Mutex<VecDeque<Wish>>,
    /// Readable as long as the queue is not empty; changed with its lock held only.
    waiting: Doorbell,
    host_failures: Arc<HostFailures>,
}

impl Wishes {
    pub(crate) fn new(host_failures: Arc<HostFailures>) -> Result<Wishes, Error> {
        let waiting = Doorbell::new().map_err(|error| Error::Event(error.into()))?;
        Ok(Wishes {
            queue: Mutex::new(VecDeque::with_capacity(QUEUE)),
            waiting,
            host_failures,
        })
    }

    /// The descriptor that is readable while wishes wait.
    pub(crate) fn fd(&self) -> RawFd {
        self.waiting.as_raw_fd()
    }

    /// Queues a wish. Returns the oldest one if it had to make room.
    fn push(&self, wish: Wish) -> Option<Wish> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let dropped = (queue.len() == QUEUE).then(|| queue.pop_front()).flatten();
        if queue.is_empty() {
            self.note(self.waiting.ring());
        }
        queue.push_back(wish);
        dropped
    }

    /// The first pages of the newest wish, all in one block.
    fn take_piece(&self) -> Option<Wish> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wish = queue.pop_back()?;
        let mut block = wish.pages;
        let mut pages = block.take_blocks(1);
        pages.end = pages.end.min(pages.start.plus(PIECE));
        wish.pages.start = pages.end;
        if !wish.pages.is_empty() {
            queue.push_back(wish);
        }
        if queue.is_empty() {
            self.note(self.waiting.silence());
        }
        Some(Wish { pages, ..wish })
    }

    /// The service threads would sleep although wishes wait, or stay awake although none do.
    fn note(&self, done: io::Result<()>) {
        if let Err(error) = done {
            let call = "read or write of the eventfd that tells of policies' wishes";
            self.host_failures.note(call, &error);
        }
    }
}

impl Backend {
    /// Queues what a policy wishes for, cut to what is possible.
    pub(crate) fn wish(&self, mut wish: Wish) {
        let given = wish.pages;
        let end = wish.pages.end.min(Page(self.pages()));
        let most = wish.pages.start.plus(MAX_WISH);
        wish.pages.end = end.min(most).max(wish.pages.start);
        let known = match wish.to {
            Place::System => true,
            Place::Device(id) => self.device(id).is_ok(),
        };
        if wish.pages != given || !known || given.is_empty() {
            self.recorder.add(Counter::AdviceCut, 1);
        }
        if known && !wish.pages.is_empty() && self.wishes.push(wish).is_some() {
            self.recorder.add(Counter::WishesDropped, 1);
        }
        // Before anything else happens.
        while self.lockstep && self.serve_wish() {}
    }

    /// Serves a bounded piece of the newest wish. Best effort: what is in motion, held or pinned stays. False if there
    /// is none.
    pub(crate) fn serve_wish(&self) -> bool {
        let Some(Wish { pages, to }) = self.wishes.take_piece() else {
            return false;
        };
        let block = pages.start.block();
        match to {
            Place::System => {
                self.take_translations_away(pages);
                self.prefetch_to_system(block, &PageSet::of(pages), &PageSet::EMPTY, Access::Read);
            }
            Place::Device(id) => {
                // It may have gone since.
                if let Ok(device) = self.device(id).cloned() {
                    self.prefetch_to_device(&device, pages);
                }
            }
        }
        true
    }

    fn prefetch_to_device(&self, device: &std::sync::Arc<Device>, pages: PageRange) {
        // As for a fault's prefetch: more would evict what the device works on.
        let most = (device.capacity() / 4).max(1);
        let want = self.movable(pages).min(most);
        if want == 0 {
            return;
        }
        let room = self.make_room(device, want).min(most);
        let movable = pages.pages().filter(|page| self.is_movable(*page));
        let set = movable
            .take(room as usize)
            .map(Page::index_in_block)
            .collect();
        let reason = Reason::of(Cause::Prefetch);
        self.migrate_with(device, [(pages.start.block(), set)], reason);
    }

    /// Devices that reach these pages in place, in system memory, have to fault before they do so again.
    fn take_translations_away(&self, pages: PageRange) {
        let mut locks = Vec::new();
        for page in pages.pages() {
            // Whoever works on a page takes them away, too, or has just found out that there is no need.
            if self.table.word(page).residency() == Residency::System
                && let TryLock::Locked(lock) = self.table.try_lock(page)
                && lock.word().residency() == Residency::System
            {
                locks.push(lock);
            }
        }
        self.invalidate_mirrors(locks.iter_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(start: u32, len: u32) -> Wish {
        Wish {
            pages: PageRange::with_len(Page(start), len),
            to: Place::System,
        }
    }

    fn readable(wishes: &Wishes) -> bool {
        let mut poll = libc::pollfd {
            fd: wishes.fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one descriptor, which is valid for the call; no waiting.
        let ready = unsafe { libc::poll(&mut poll, 1, 0) };
        ready == 1
    }

    #[test]
    fn the_newest_wish_is_served_first_in_pieces_of_blocks() {
        let wishes = Wishes::new(Arc::default()).unwrap();
        assert!(!readable(&wishes));
        assert_eq!(wishes.push(wish(0, 10)), None);
        assert_eq!(wishes.push(wish(500, 200)), None);
        for piece in [wish(500, 12), wish(512, 128), wish(640, 60), wish(0, 10)] {
            assert!(readable(&wishes));
            assert_eq!(wishes.take_piece(), Some(piece));
        }
        assert!(!readable(&wishes));
        assert_eq!(wishes.take_piece(), None);
    }

    #[test]
    fn the_oldest_wish_makes_room() {
        let wishes = Wishes::new(Arc::default()).unwrap();
        for n in 0..QUEUE as u32 {
            assert_eq!(wishes.push(wish(n, 1)), None);
        }
        assert_eq!(wishes.push(wish(999, 1)), Some(wish(0, 1)));
        assert_eq!(wishes.take_piece(), Some(wish(999, 1)));
    }
}
