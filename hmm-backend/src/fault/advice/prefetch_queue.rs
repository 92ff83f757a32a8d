//! The queue of migrations that policies want and that no fault waits for: the other pages of a fault's advice, and
//! wishes. The service threads serve them when no fault waits.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::host::doorbell::Doorbell;
use crate::memory::HostFailures;
use crate::pages::{Access, Block, Error, Page, PageRange, PageSet, Place};
use crate::policy::Wish;

/// The most entries for faults, and the most wishes. Longer queues are of no use: older entries are about memory that the
/// guest no longer works on.
const FAULTS: usize = 32;
const WISHES: usize = 256;
/// The most pages in a piece, if it does not end in the middle of a folio: after a piece, the service thread checks for
/// faults.
const PIECE: usize = 128;

/// Pages of one block that are to migrate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Prefetch {
    pub(crate) block: Block,
    pub(crate) pages: PageSet,
    pub(crate) to: Place,
    /// Which of them stay in their devices' memories, too.
    pub(crate) duplicate: PageSet,
    /// The access that is expected.
    pub(crate) access: Access,
    /// Whether a policy has wished for it; otherwise it comes with a fault.
    pub(crate) wished: bool,
}

#[derive(Default)]
struct Lists {
    faults: VecDeque<Prefetch>,
    wishes: VecDeque<Wish>,
}

/// The prefetches that are not served yet.
pub(crate) struct PrefetchQueue {
    lists: Mutex<Lists>,
    /// Whether there are any for faults; changed only under the lock. No thread is woken for these: the one that
    /// queued them is a service thread, and serves them before it sleeps.
    for_faults: AtomicBool,
    /// Whether there are wishes; changed only under the lock.
    wishes: AtomicBool,
    /// Readable as long as there are wishes; changed only under the lock.
    wishes_wait: Doorbell,
    host_failures: Arc<HostFailures>,
}

impl PrefetchQueue {
    pub(crate) fn new(host_failures: Arc<HostFailures>) -> Result<PrefetchQueue, Error> {
        let wishes_wait = Doorbell::new().map_err(|error| Error::Event(error.into()))?;
        Ok(PrefetchQueue {
            lists: Mutex::default(),
            for_faults: AtomicBool::new(false),
            wishes: AtomicBool::new(false),
            wishes_wait,
            host_failures,
        })
    }

    /// Returns the descriptor that is readable while wishes wait.
    pub(crate) fn fd(&self) -> RawFd {
        self.wishes_wait.as_raw_fd()
    }

    /// Whether prefetches for faults wait: the calling service thread must not sleep.
    pub(crate) fn has_for_faults(&self) -> bool {
        self.for_faults.load(Ordering::Relaxed)
    }

    /// Queues what comes with a fault. If the queue was full, removes the oldest entry and returns its number of pages.
    pub(crate) fn add_for_fault(&self, prefetch: Prefetch) -> usize {
        let mut lists = self.lists.lock();
        let full = lists.faults.len() == FAULTS;
        let dropped = full.then(|| lists.faults.pop_front()).flatten();
        lists.faults.push_back(prefetch);
        self.for_faults.store(true, Ordering::Relaxed);
        dropped.map_or(0, |prefetch| prefetch.pages.count())
    }

    /// Queues a wish. If the queue was full, removes and returns the oldest one.
    pub(super) fn add_wish(&self, wish: Wish) -> Option<Wish> {
        let mut lists = self.lists.lock();
        let full = lists.wishes.len() == WISHES;
        let dropped = full.then(|| lists.wishes.pop_front()).flatten();
        if lists.wishes.is_empty() {
            self.wishes.store(true, Ordering::Relaxed);
            self.note(self.wishes_wait.ring());
        }
        lists.wishes.push_back(wish);
        dropped
    }

    /// Removes the wishes for some of these pages.
    pub(super) fn forget_wishes(&self, pages: PageRange) {
        let mut lists = self.lists.lock();
        let had = !lists.wishes.is_empty();
        lists.wishes.retain(|wish| wish.pages.overlap(pages) == 0);
        if had && lists.wishes.is_empty() {
            self.note(self.wishes_wait.silence());
        }
    }

    /// Removes and returns the first pages of the newest entry; those for faults come before wishes. `None` if the queue
    /// is empty. `folio` returns the folio that a page is in: a folio that is wanted as a whole stays whole, and so does
    /// the host's huge page behind it.
    pub(super) fn take_piece(&self, folio: impl Fn(Page) -> PageRange) -> Option<Prefetch> {
        // What another thread queues at this moment is found by the next call.
        if !self.has_for_faults() && !self.wishes.load(Ordering::Relaxed) {
            return None;
        }
        let mut lists = self.lists.lock();
        if let Some(newest) = lists.faults.pop_back() {
            let mut pages: PageSet = newest.pages.iter().take(PIECE).collect();
            if let Some(last) = pages.iter().last() {
                let folio = PageSet::of(folio(newest.block.page(last)));
                if folio.difference(&newest.pages).is_empty() {
                    pages = pages.union(&folio);
                }
            }
            let rest = newest.pages.difference(&pages);
            if !rest.is_empty() {
                lists.faults.push_back(Prefetch {
                    pages: rest,
                    ..newest
                });
            }
            let left = !lists.faults.is_empty();
            self.for_faults.store(left, Ordering::Relaxed);
            return Some(Prefetch { pages, ..newest });
        }
        let mut wish = lists.wishes.pop_back()?;
        let mut block = wish.pages;
        let mut pages = block.take_blocks(1);
        let in_block = pages.end;
        pages.end = in_block.min(pages.start.plus(PIECE as u32));
        let folio = folio(Page(pages.end.0 - 1));
        if folio.start >= pages.start && folio.end <= in_block {
            pages.end = folio.end;
        }
        wish.pages.start = pages.end;
        if !wish.pages.is_empty() {
            lists.wishes.push_back(wish);
        }
        if lists.wishes.is_empty() {
            self.wishes.store(false, Ordering::Relaxed);
            self.note(self.wishes_wait.silence());
        }
        Some(Prefetch {
            block: pages.start.block(),
            pages: PageSet::of(pages),
            to: wish.to,
            duplicate: PageSet::EMPTY,
            access: Access::Read,
            wished: true,
        })
    }

    /// Records a failed ring or silence of the doorbell: after that, the service threads may sleep although
    /// wishes wait, or stay awake although none do.
    fn note(&self, done: io::Result<()>) {
        if let Err(error) = done {
            let call = "read or write of the eventfd that tells of policies' wishes";
            self.host_failures.note(call, &error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn single(page: Page) -> PageRange {
        PageRange::single(page)
    }

    fn wish(start: u32, len: u32) -> Wish {
        Wish {
            pages: PageRange::with_len(Page(start), len),
            to: Place::System,
        }
    }

    fn for_fault(block: u32, pages: PageSet) -> Prefetch {
        Prefetch {
            block: Block(block),
            pages,
            to: Place::System,
            duplicate: PageSet::EMPTY,
            access: Access::Write,
            wished: false,
        }
    }

    fn readable(queue: &PrefetchQueue) -> bool {
        let mut poll = libc::pollfd {
            fd: queue.fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one descriptor, which is valid for the call; no waiting.
        let ready = unsafe { libc::poll(&mut poll, 1, 0) };
        ready == 1
    }

    #[test]
    fn the_newest_wish_is_served_first_in_pieces_of_blocks() {
        let queue = PrefetchQueue::new(Arc::default()).unwrap();
        assert!(!readable(&queue));
        assert_eq!(queue.add_wish(wish(0, 10)), None);
        assert_eq!(queue.add_wish(wish(500, 200)), None);
        for (block, pages) in [(0, 500..512), (1, 0..128), (1, 128..188), (0, 0..10)] {
            assert!(readable(&queue));
            let piece = queue.take_piece(single).unwrap();
            assert_eq!((piece.block, piece.pages), (Block(block), pages.collect()));
        }
        assert!(!readable(&queue));
        assert_eq!(queue.take_piece(single), None);
    }

    #[test]
    fn a_piece_does_not_cut_a_folio() {
        let queue = PrefetchQueue::new(Arc::default()).unwrap();
        let whole = |page: Page| PageRange::with_len(page.folio_head(9), 512);
        let halves = |page: Page| PageRange::with_len(page.folio_head(8), 256);
        queue.add_wish(wish(0, 512));
        queue.add_for_fault(for_fault(1, PageSet::from_range(0..512)));
        queue.add_for_fault(for_fault(2, PageSet::from_range(0..300)));
        // Only a part of the second half is wanted, so it is cut in any case.
        for (block, pages) in [(2, 0..256), (2, 256..300), (1, 0..256), (1, 256..512)] {
            let piece = queue.take_piece(halves).unwrap();
            assert_eq!((piece.block, piece.pages), (Block(block), pages.collect()));
        }
        assert_eq!(queue.take_piece(whole).unwrap().pages.count(), 512);
        queue.add_wish(wish(0, 511));
        assert_eq!(queue.take_piece(whole).unwrap().pages.count(), PIECE);
    }

    #[test]
    fn the_oldest_wish_makes_room() {
        let queue = PrefetchQueue::new(Arc::default()).unwrap();
        for n in 0..WISHES as u32 {
            assert_eq!(queue.add_wish(wish(n, 1)), None);
        }
        assert_eq!(queue.add_wish(wish(999, 1)), Some(wish(0, 1)));
        assert_eq!(queue.take_piece(single).unwrap().block, Page(999).block());
    }

    #[test]
    fn what_comes_with_faults_is_served_before_wishes() {
        let queue = PrefetchQueue::new(Arc::default()).unwrap();
        let pages = PageSet::from_range(100..300);
        assert_eq!(queue.add_for_fault(for_fault(7, pages)), 0);
        assert!(queue.has_for_faults() && !readable(&queue));
        queue.add_wish(wish(0, 1));
        let first = for_fault(7, (100..228).collect());
        assert_eq!(queue.take_piece(single), Some(first));
        assert!(queue.has_for_faults());
        assert_eq!(
            queue.take_piece(single).unwrap().pages,
            (228..300).collect()
        );
        assert!(!queue.has_for_faults());
        assert!(queue.take_piece(single).unwrap().wished);
        for n in 0..FAULTS as u32 {
            assert_eq!(queue.add_for_fault(for_fault(n, pages)), 0);
        }
        assert_eq!(queue.add_for_fault(for_fault(99, pages)), 200);
    }
}
