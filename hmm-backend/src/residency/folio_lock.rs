//! The lock of one folio, and the changes that its holder may make to the folio's words.
//!
//! The order of the stores keeps readers without the lock correct: a page's word never names a head whose lock does
//! not cover the page.

use super::sync::Ordering;
use super::table::ResidencyTable;
use super::word::{LOCKED, MIRRORED, WAITERS, Word};
use crate::pages::{Page, PageRange, Permission};

/// The lock of one folio. Dropping it unlocks the folio without a change.
pub(crate) struct FolioLock<'t> {
    table: &'t ResidencyTable,
    head: Page,
    /// The head's word, without the lock and waiters bits.
    word: Word,
}

impl<'t> FolioLock<'t> {
    /// Makes the lock object after the lock bit of `head` was set; `word` is the head's word before that.
    pub(crate) fn taken(table: &'t ResidencyTable, head: Page, word: Word) -> FolioLock<'t> {
        FolioLock { table, head, word }
    }

    pub(crate) fn head(&self) -> Page {
        self.head
    }

    pub(crate) fn word(&self) -> Word {
        self.word
    }

    pub(crate) fn order(&self) -> u8 {
        self.word.order()
    }

    pub(crate) fn range(&self) -> PageRange {
        PageRange::with_len(self.head, 1 << self.order())
    }

    /// Cuts the folio in two. This lock keeps the lower half; returns the lock of the upper half.
    pub(crate) fn halve(&mut self) -> FolioLock<'t> {
        let order = self.order() - 1;
        let middle = self.head.plus(1 << order);
        let end = self.range().end;
        let upper = FolioLock {
            table: self.table,
            head: middle,
            // Devices may have translations of both halves, so the upper head inherits the mirrored flag.
            word: self
                .table
                .word(middle)
                .with_order(order)
                .with(self.word.0 & MIRRORED),
        };
        // Lock the upper head before any of its tails names it.
        self.table.store(middle, upper.word.with(LOCKED));
        self.rewrite_tails(PageRange::new(middle, end), |_, word| {
            word.with_order(order)
        });
        self.rewrite_tails(PageRange::new(self.head, middle), |_, word| {
            word.with_order(order)
        });
        // A waiter may set the waiters bit of the lower head at this moment: change only the order bits.
        let lower = self.word.with_order(order);
        let cell = &self.table.words[self.head.0 as usize];
        let old = Word(cell.fetch_xor(self.word.0 ^ lower.0, Ordering::AcqRel));
        // A waiter that set the bit on the whole folio may wait for a page of the upper half, which is unlocked
        // separately from now on: pass the bit on.
        if old.waiters() {
            self.table.words[middle.0 as usize].fetch_or(WAITERS, Ordering::AcqRel);
        }
        self.word = lower;
        upper
    }

    /// Merges several folios into one (or rewrites the words of one), giving each page the word that `word` makes of
    /// its index and its old word. The folios must be neighbours, in ascending order, and form a naturally aligned
    /// group of `1 << order` pages. Returns the lock of the new folio.
    pub(crate) fn merge(
        locks: impl IntoIterator<Item = FolioLock<'t>>,
        order: u8,
        word: impl Fn(usize, Word) -> Word,
    ) -> FolioLock<'t> {
        let mut folio: Option<FolioLock<'t>> = None;
        let mut index = 0;
        for mut lock in locks {
            let range = lock.range();
            let new = word(index, lock.word);
            debug_assert_eq!(new.order(), order);
            debug_assert!(
                folio
                    .as_ref()
                    .is_none_or(|f| f.head.plus(index as u32) == range.start)
            );
            let first = folio.is_none();
            if first {
                // Before any other word names this page as its head.
                lock.replace(new);
            }
            let behind = index + 1;
            lock.rewrite_tails(range, |i, old| word(behind + i, old));
            index += range.len() as usize;
            if first {
                folio = Some(lock);
            } else {
                // The new head is locked: waiters that wake up look again and wait for it.
                lock.release_range(new, range);
            }
        }
        debug_assert_eq!(index, 1 << order);
        folio.expect("a folio has at least one page")
    }

    /// Changes the head's word and keeps the lock. For folios of one page, or if the tails are rewritten right
    /// afterwards.
    fn replace(&mut self, new: Word) {
        // Change only the bits that differ: a waiter may set the waiters bit at the same time.
        let cell = &self.table.words[self.head.0 as usize];
        cell.fetch_xor(self.word.0 ^ new.0, Ordering::AcqRel);
        self.word = new;
    }

    /// Changes the state of every page and unlocks. Afterwards each page is a folio of its own.
    pub(crate) fn publish_pages(self, word: impl Fn(Word) -> Word) {
        self.publish(0, word);
    }

    /// Changes the state of every page and unlocks. The pages stay one folio.
    pub(crate) fn publish_folio(self, word: impl Fn(Word) -> Word) {
        let order = self.order();
        self.publish(order, word);
    }

    fn publish(self, order: u8, word: impl Fn(Word) -> Word) {
        let range = self.range();
        self.rewrite_tails(range, |_, old| word(old).with_order(order));
        let new = word(self.word).with_order(order);
        self.release_range(new, range);
    }

    /// Gives each page of `range` except the first the word that `word` makes of its index (from 0 for the second
    /// page) and its old word. Relaxed loads suffice: only the holder of the lock writes these words.
    fn rewrite_tails(&self, range: PageRange, word: impl Fn(usize, Word) -> Word) {
        let tails = &self.table.words[range.start.0 as usize + 1..range.end.0 as usize];
        for (i, cell) in tails.iter().enumerate() {
            let old = Word(cell.load(Ordering::Relaxed));
            cell.store(word(i, old).0, Ordering::Release);
        }
    }

    /// Cuts the folio until each piece is wholly wanted or wholly unwanted. Appends the wanted pieces to `out` and
    /// unlocks the other pieces. `wanted` returns how many pages of a range are wanted. For folios in system memory
    /// only, because no driver is told of the cuts.
    pub(crate) fn carve(
        mut self,
        wanted: &impl Fn(PageRange) -> u32,
        out: &mut impl Extend<FolioLock<'t>>,
    ) {
        let count = wanted(self.range());
        if count == self.range().len() {
            out.extend([self]);
        } else if count > 0 {
            let upper = self.halve();
            self.carve(wanted, out);
            upper.carve(wanted, out);
        }
    }

    /// Changes the folio's permission and keeps the lock.
    pub(crate) fn set_permission(&mut self, permission: Permission) {
        for page in PageRange::new(self.head.plus(1), self.range().end).pages() {
            let word = self.table.word(page).with_permission(permission);
            self.table.store(page, word);
        }
        self.replace(self.word.with_permission(permission));
    }

    /// Clears the mirrored flag: no device has a translation any more. Call it only after the mirrors were
    /// invalidated.
    pub(crate) fn clear_mirrored(&mut self) {
        self.replace(self.word.without(MIRRORED));
    }

    fn release_range(self, new: Word, range: PageRange) {
        let this = std::mem::ManuallyDrop::new(self);
        let cell = &this.table.words[this.head.0 as usize];
        let old = Word(cell.swap(new.0, Ordering::AcqRel));
        debug_assert!(old.locked() && !new.locked());
        if old.waiters() {
            this.table.wake(range);
        }
    }
}

impl Drop for FolioLock<'_> {
    fn drop(&mut self) {
        let cell = &self.table.words[self.head.0 as usize];
        let old = Word(cell.fetch_and(!(LOCKED | WAITERS), Ordering::AcqRel));
        debug_assert!(old.locked());
        if old.waiters() {
            self.table.wake(self.range());
        }
    }
}
