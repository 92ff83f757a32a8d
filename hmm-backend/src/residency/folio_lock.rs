//! The lock of one folio, and the changes that its holder may make to the folio's words.
//!
//! The order of the stores keeps readers without the lock correct: a page's entry never leads to a head whose lock does
//! not cover the page.

use super::sync::Ordering;
use super::table::ResidencyTable;
use super::word::{Entry, LOCKED, MIRRORED, WAITERS, Word};
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
        let half = 1 << order;
        let upper = FolioLock {
            table: self.table,
            head: self.head.plus(half),
            // Devices may have translations of both halves, so the upper head inherits the mirrored flag.
            word: self.word.of_page(half).with_order(order),
        };
        // Lock the upper head before any of its tails leads to it.
        self.table
            .store(upper.head, Entry::Head(upper.word.with(LOCKED)));
        self.table.write_tails(upper.range(), order);
        self.table
            .write_tails(PageRange::with_len(self.head, half), order);
        // A waiter may set the waiters bit of the lower head at this moment: change only the order bits.
        let waiters = self.replace(self.word.with_order(order)).waiters();
        // A waiter that set the bit on the whole folio may wait for a page of the upper half, which is unlocked
        // separately from now on: pass the bit on.
        if waiters {
            self.table.words[upper.head.0 as usize].fetch_or(WAITERS, Ordering::AcqRel);
        }
        upper
    }

    /// Merges several folios into one, whose word is what `word` makes of the first folio's word. The folios must be
    /// neighbours, in ascending order, form a naturally aligned group of `1 << order` pages, and have the same
    /// permission. A single folio of that order keeps its tails as they are. Returns the lock of the new folio.
    pub(crate) fn merge(
        locks: impl AsRef<[FolioLock<'t>]> + IntoIterator<Item = FolioLock<'t>>,
        order: u8,
        word: impl FnOnce(Word) -> Word,
    ) -> FolioLock<'t> {
        // The folio has one generation: a later one than each of its pages had.
        let words = locks.as_ref().iter().map(|lock| lock.word);
        let latest = words.reduce(Word::with_later_generation);
        let several = locks.as_ref().len() > 1;
        let mut locks = locks.into_iter();
        let (Some(mut folio), Some(latest)) = (locks.next(), latest) else {
            unreachable!("a folio has at least one page");
        };
        let (table, own) = (folio.table, folio.range());
        let new = word(latest);
        debug_assert_eq!(
            (new.order(), own.start.folio_head(order)),
            (order, own.start)
        );
        // Before any other page leads to this one as its head.
        folio.replace(new);
        if several {
            table.write_tails(own, order);
        }
        let mut end = own.end;
        for lock in locks {
            let range = lock.range();
            debug_assert_eq!(
                (range.start, lock.word.permission()),
                (end, new.permission())
            );
            end = range.end;
            table.write_tails(range, order);
            // The new head is locked: waiters that wake up look again and wait for it.
            lock.release(Entry::Tail { order }, range);
        }
        debug_assert_eq!(end, folio.range().end);
        folio
    }

    /// Changes the head's word and keeps the lock; returns the word that was there.
    fn replace(&mut self, new: Word) -> Word {
        // Change only the bits that differ: a waiter may set the waiters bit at the same time.
        let cell = &self.table.words[self.head.0 as usize];
        let old = cell.fetch_xor(self.word.0 ^ new.0, Ordering::AcqRel);
        self.word = new;
        Word(old)
    }

    /// Changes the state of every page and unlocks. Afterwards each page is a folio of its own.
    pub(crate) fn publish_pages(self, word: impl Fn(Word) -> Word) {
        let range = self.range();
        for index in 1..range.len() {
            let new = word(self.word.of_page(index)).with_order(0);
            self.table.store(self.head.plus(index), Entry::Head(new));
        }
        let new = word(self.word).with_order(0);
        self.release(Entry::Head(new), range);
    }

    /// Changes the state of the folio and unlocks. The pages stay one folio.
    pub(crate) fn publish_folio(self, word: impl FnOnce(Word) -> Word) {
        let new = word(self.word).with_order(self.order());
        let range = self.range();
        self.release(Entry::Head(new), range);
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
        self.replace(self.word.with_permission(permission));
    }

    /// Clears the mirrored flag: no device has a translation any more. Call it only after the mirrors were
    /// invalidated.
    pub(crate) fn clear_mirrored(&mut self) {
        self.replace(self.word.without(MIRRORED));
    }

    /// Writes the head's entry, which unlocks the folio, and wakes those who wait for these pages.
    fn release(self, new: Entry, range: PageRange) {
        let this = std::mem::ManuallyDrop::new(self);
        let cell = &this.table.words[this.head.0 as usize];
        let old = Word(cell.swap(new.encode(), Ordering::AcqRel));
        debug_assert!(old.locked());
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
