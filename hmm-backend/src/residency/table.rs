//! The table of residency words and the lock protocol on them. It knows no file descriptors: sleeping vCPUs are woken
//! through [`WakeFaults`].
//!
//! Rules that the rest of the crate relies on:
//!
//! * A folio has one word, in the entry of its first page (its head); its lock is the lock bit in that word. The entries
//!   of its other pages (tails) lead to the head, and what is said of a tail is derived from the head's word.
//! * Only the holder of the lock changes state, frame or order, and the entries of tails. Pins, the mirrored flag and the lock itself are set
//!   with a compare-exchange on an *unlocked* word, so they cannot change while the lock is held.
//! * Every unlock wakes the waiters that have set the waiters bit. Waiters hold no lock and check everything again
//!   after they wake.

use super::folio_lock::FolioLock;
use super::pattern::Pattern;
use super::sync::{AtomicU64, Ordering, zeroed_words};
use super::wait::WaitTable;
use super::word::{AUX_MAX, Entry, LOCKED, MIRRORED, PIN, Residency, WAITERS, Word};
use crate::pages::time::Tick;
use crate::pages::{Page, PageRange};

/// Wakes CPUs that sleep in a fault on any of these pages. The CPUs then execute the access again.
pub(crate) trait WakeFaults: Send + Sync {
    fn wake_faults(&self, range: PageRange);
}

pub(crate) struct ResidencyTable {
    pub(crate) words: Box<[AtomicU64]>,
    waits: WaitTable,
    faults: Box<dyn WakeFaults>,
}

/// The result of [`ResidencyTable::try_lock`].
pub(crate) enum TryLock<'t> {
    Locked(FolioLock<'t>),
    /// Another thread holds the lock.
    Busy,
}

/// Why a page could not be pinned.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PinError {
    /// Another thread holds the page's lock, or the page is not in system memory.
    NotNow,
    /// The page is part of a larger folio; pins are counted for single pages only.
    InFolio,
    TooMany,
}

impl ResidencyTable {
    pub(crate) fn new(pages: u32, faults: Box<dyn WakeFaults>) -> ResidencyTable {
        ResidencyTable {
            words: zeroed_words(pages as usize),
            waits: WaitTable::new(),
            faults,
        }
    }

    pub(crate) fn pages(&self) -> u32 {
        self.words.len() as u32
    }

    fn entry(&self, page: Page) -> Entry {
        Entry::decode(self.words[page.0 as usize].load(Ordering::Acquire))
    }

    /// Returns the page's word: that of its folio, with the page's own frame.
    pub(crate) fn word(&self, page: Page) -> Word {
        let (head, word) = self.folio(page);
        word.of_page(page.0 - head.0)
    }

    /// Returns the words of these pages of one block, in order. They are read at different moments.
    pub(crate) fn words(&self, range: PageRange) -> Vec<Word> {
        let entries = &self.words[range.start.0 as usize..range.end.0 as usize];
        let load = |entry: &AtomicU64| Word(entry.load(Ordering::Acquire));
        let mut words: Vec<Word> = entries.iter().map(load).collect();
        for tails in Pattern::TAIL.find(&words).runs() {
            let mut at = tails.start;
            while at < tails.end {
                let page = range.start.plus(at as u32);
                let (head, word) = self.folio(page);
                let index = page.0 - head.0;
                let rest = tails.end.min(at + ((1 << word.order()) - index) as usize);
                for (index, tail) in (index..).zip(&mut words[at..rest]) {
                    *tail = word.of_page(index);
                }
                at = rest;
            }
        }
        words
    }

    /// Returns the head of the folio that `page` belongs to, and the head's word.
    fn folio(&self, page: Page) -> (Page, Word) {
        loop {
            let order = match self.entry(page) {
                Entry::Head(word) => return (page, word),
                Entry::Tail { order } => order,
            };
            let head = page.folio_head(order);
            // If the head's order is larger and the head is locked, the folio is being cut, and the holder's lock
            // covers this page, too. If it is smaller, the folio was cut after the first load: the head's lock no
            // longer covers this page, and a waiter would wait for the wrong lock. Tails are written before heads,
            // so reading again helps.
            if let Entry::Head(word) = self.entry(head)
                && (word.order() == order || (word.locked() && word.order() > order))
            {
                return (head, word);
            }
        }
    }

    /// Returns the pages of the folio that the page belongs to at this moment.
    pub(crate) fn folio_range(&self, page: Page) -> PageRange {
        let (head, word) = self.folio(page);
        PageRange::with_len(head, 1 << word.order())
    }

    /// Whether a thread holds the lock of the page's folio.
    pub(crate) fn locked(&self, page: Page) -> bool {
        self.folio(page).1.locked()
    }

    /// Sleeps until the page's folio is unlocked. Returns the first page after the folio.
    pub(crate) fn settle(&self, page: Page) -> Page {
        loop {
            let (head, word) = self.folio(page);
            if !word.locked() {
                return head.plus(1 << word.order());
            }
            self.wait(page);
        }
    }

    fn exchange(&self, page: Page, from: Word, to: Word) -> bool {
        self.words[page.0 as usize]
            .compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Locks the page's folio, unless another thread holds the lock.
    pub(crate) fn try_lock(&self, page: Page) -> TryLock<'_> {
        loop {
            let (head, word) = self.folio(page);
            if word.locked() {
                return TryLock::Busy;
            }
            if self.exchange(head, word, word.with(LOCKED)) {
                return TryLock::Locked(FolioLock::taken(self, head, word));
            }
        }
    }

    /// Sets the waiters bit for a CPU that sleeps in a fault on the page, so that the holder of the lock wakes it.
    /// Returns false if the page is not locked.
    pub(crate) fn announce_waiter(&self, page: Page) -> bool {
        loop {
            let (head, word) = self.folio(page);
            if !word.locked() {
                return false;
            }
            if word.waiters() || self.exchange(head, word, word.with(WAITERS)) {
                return true;
            }
        }
    }

    /// Sleeps until the holder of the page's lock releases it; returns at once if the page is not locked. The caller
    /// must hold no lock and must check the page again.
    pub(crate) fn wait(&self, page: Page) {
        let (head, word) = self.folio(page);
        if word.locked() {
            self.waits.wait(head, || {
                let (now_head, now) = self.folio(page);
                now_head == head
                    && now.locked()
                    && (now.waiters() || self.exchange(head, now, now.with(WAITERS)))
            });
        }
    }

    /// Sets the mirrored flag, because a device is about to get a translation of the page. Returns `None` if another
    /// thread holds the lock. Otherwise returns the page's word while the flag was set: a later holder of the lock sees
    /// the flag.
    pub(crate) fn mark_mirrored(&self, page: Page) -> Option<Word> {
        loop {
            let (head, word) = self.folio(page);
            if word.locked() {
                return None;
            }
            let marked = word.with(MIRRORED);
            if word.mirrored() || self.exchange(head, word, marked) {
                return Some(marked.of_page(page.0 - head.0));
            }
        }
    }

    /// Adds a pin to a single page in system memory.
    pub(crate) fn pin(&self, page: Page) -> Result<(), PinError> {
        loop {
            let word = self.word(page);
            if word.locked() || word.residency() != Residency::System {
                return Err(PinError::NotNow);
            }
            if word.order() > 0 {
                return Err(PinError::InFolio);
            }
            if word.pins() == AUX_MAX {
                return Err(PinError::TooMany);
            }
            if self.exchange(page, word, Word(word.0 + PIN)) {
                return Ok(());
            }
        }
    }

    /// Removes a pin. Another thread may hold the lock at this moment: it finds the page pinned and unlocks it
    /// without a change, so this subtraction is not lost.
    pub(crate) fn unpin(&self, page: Page) {
        let before = Word(self.words[page.0 as usize].fetch_sub(PIN, Ordering::AcqRel));
        debug_assert!(before.pins() > 0, "unpin of an unpinned {page:?}");
    }

    /// Says that these untouched pages are in system memory. Call it while no other thread has the table.
    pub(crate) fn set_present(&self, range: PageRange) {
        let word = Word::default().to_system(Tick::default());
        range
            .pages()
            .for_each(|page| self.store(page, Entry::Head(word)));
    }

    /// Writes a page's entry. For the holder of the lock, and pages that are not the head.
    pub(super) fn store(&self, page: Page, entry: Entry) {
        self.words[page.0 as usize].store(entry.encode(), Ordering::Release);
    }

    /// Makes the pages of `range` except the first ones lead to the head of a folio of this order.
    pub(super) fn write_tails(&self, range: PageRange, order: u8) {
        for page in PageRange::new(range.start.plus(1), range.end).pages() {
            self.store(page, Entry::Tail { order });
        }
    }

    /// Wakes all threads and CPUs that wait for the folio with the pages `range`.
    pub(crate) fn wake(&self, range: PageRange) {
        self.waits.notify(range.start);
        self.faults.wake_faults(range);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::pages::{DeviceId, Frame};
    use crate::residency::Placed;
    use std::sync::Arc;
    use std::sync::Mutex;

    #[derive(Default, Clone)]
    struct Woken(Arc<Mutex<Vec<PageRange>>>);
    impl WakeFaults for Woken {
        fn wake_faults(&self, range: PageRange) {
            self.0.lock().unwrap().push(range);
        }
    }

    fn table(pages: u32) -> (ResidencyTable, Woken) {
        let woken = Woken::default();
        (ResidencyTable::new(pages, Box::new(woken.clone())), woken)
    }

    fn lock(table: &ResidencyTable, page: u32) -> FolioLock<'_> {
        match table.try_lock(Page(page)) {
            TryLock::Locked(lock) => lock,
            TryLock::Busy => panic!("page {page} is busy"),
        }
    }

    fn device_folio(table: &ResidencyTable, head: u32, order: u8) {
        let locks = (head..head + (1 << order)).map(|p| lock(table, p));
        let locks: Vec<_> = locks.collect();
        FolioLock::merge(locks, order, |w| {
            w.to_private(DeviceId(1), Frame(100), order)
        });
    }

    #[test]
    fn a_folio_has_one_lock_whichever_page_is_asked() {
        let (table, _) = table(16);
        device_folio(&table, 8, 3);
        let held = lock(&table, 13);
        assert_eq!(held.range(), PageRange::with_len(Page(8), 8));
        for page in 8..16 {
            assert!(
                matches!(table.try_lock(Page(page)), TryLock::Busy),
                "page {page}"
            );
        }
        drop(held);
        lock(&table, 8);
    }

    #[test]
    fn halves_keep_frames_flags_and_locks() {
        let (table, _) = table(8);
        device_folio(&table, 0, 3);
        assert!(table.mark_mirrored(Page(6)).is_some());
        let mut lower = lock(&table, 0);
        let upper = lower.halve();
        assert_eq!(
            (lower.order(), upper.order(), upper.head()),
            (2, 2, Page(4))
        );
        assert!(upper.word().mirrored() && lower.word().mirrored());
        drop(lower);
        assert!(table.locked(Page(7)) && !table.locked(Page(3)));
        drop(upper);
        for page in 0..8 {
            let word = table.word(Page(page));
            let frame = Frame(100 + page);
            assert_eq!(
                word.residency(),
                Residency::Device(Placed {
                    device: DeviceId(1),
                    frame,
                    order: 2
                })
            );
        }
    }

    #[test]
    fn an_unlock_wakes_exactly_if_somebody_waits() {
        let (table, woken) = table(8);
        device_folio(&table, 0, 2);
        drop(lock(&table, 0));
        assert!(woken.0.lock().unwrap().is_empty());
        let held = lock(&table, 1);
        assert!(table.announce_waiter(Page(3)));
        held.publish_pages(|w| w.to_system(Tick(0)));
        assert_eq!(*woken.0.lock().unwrap(), [PageRange::with_len(Page(0), 4)]);
        assert!(!table.announce_waiter(Page(3)));
    }

    #[test]
    fn pins_survive_a_lock_that_changes_nothing() {
        let (table, _) = table(1);
        assert!(matches!(table.pin(Page(0)), Err(PinError::NotNow)));
        lock(&table, 0).publish_pages(|w| w.to_system(Tick(0)));
        table.pin(Page(0)).unwrap();
        table.pin(Page(0)).unwrap();
        let held = lock(&table, 0);
        assert!(matches!(table.pin(Page(0)), Err(PinError::NotNow)));
        table.unpin(Page(0));
        drop(held);
        assert_eq!(table.word(Page(0)).pins(), 1);
        for _ in 1..AUX_MAX {
            table.pin(Page(0)).unwrap();
        }
        assert_eq!(table.pin(Page(0)), Err(PinError::TooMany));
    }

    #[test]
    fn a_sleeping_thread_is_woken_by_the_unlock() {
        let (table, _) = table(4);
        for _ in 0..1000 {
            let held = lock(&table, 2);
            std::thread::scope(|s| {
                s.spawn(|| {
                    while table.locked(Page(2)) {
                        table.wait(Page(2));
                    }
                });
                drop(held);
            });
        }
    }

    #[test]
    fn marking_as_mirrored_loses_against_a_lock() {
        let (table, _) = table(4);
        device_folio(&table, 0, 1);
        let held = lock(&table, 0);
        assert_eq!(table.mark_mirrored(Page(1)), None);
        drop(held);
        assert!(table.mark_mirrored(Page(1)).is_some());
        assert!(lock(&table, 0).word().mirrored());
    }
}
