//! The words of a block's pages, for policies, most of which look at them only now and then.

use std::cell::{Cell, OnceCell};
use std::ops::Deref;

use super::table::ResidencyTable;
use super::word::Word;
use crate::pages::{PageRange, PageSet, Place};

/// The words of a block's pages. The first look at one of them reads all; they stay as they were then.
pub(crate) struct BlockWords<'t> {
    unread: Option<(&'t ResidencyTable, PageRange)>,
    words: OnceCell<Vec<Word>>,
    /// What was found in them last.
    resident: Cell<Option<(Place, PageSet)>>,
}

impl<'t> BlockWords<'t> {
    /// The words of these pages of a block, still unread.
    pub(crate) fn new(table: &'t ResidencyTable, pages: PageRange) -> BlockWords<'t> {
        BlockWords {
            unread: Some((table, pages)),
            words: OnceCell::new(),
            resident: Cell::new(None),
        }
    }

    /// These words, without a table.
    #[cfg(test)]
    pub(crate) fn read(words: Vec<Word>) -> BlockWords<'t> {
        BlockWords {
            unread: None,
            words: OnceCell::from(words),
            resident: Cell::new(None),
        }
    }

    /// The pages whose contents are at `place`, by `find`, which is called once for each place in a row: a policy asks for
    /// the same pages as the code that checks its advice.
    pub(crate) fn resident(&self, place: Place, find: impl FnOnce() -> PageSet) -> PageSet {
        match self.resident.get() {
            Some((known, pages)) if known == place => pages,
            _ => {
                let pages = find();
                self.resident.set(Some((place, pages)));
                pages
            }
        }
    }

    /// Returns the word of the page with this index, `None` behind the last one. Reads only this word if they are still unread.
    pub(crate) fn get(&self, index: usize) -> Option<Word> {
        match (self.words.get(), self.unread) {
            (None, Some((table, pages))) => {
                let page = pages.start.plus(index as u32);
                pages.contains(page).then(|| table.word(page))
            }
            _ => self[..].get(index).copied(),
        }
    }

    /// The number of words. Reads none of them.
    pub(crate) fn len(&self) -> usize {
        self.unread
            .map_or_else(|| self[..].len(), |(_, pages)| pages.len() as usize)
    }
}

impl Deref for BlockWords<'_> {
    type Target = [Word];

    fn deref(&self) -> &[Word] {
        self.words.get_or_init(|| match self.unread {
            Some((table, pages)) => table.words(pages),
            None => Vec::new(),
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::pages::time::Tick;
    use crate::pages::{DeviceId, Page};
    use crate::residency::{Residency, TryLock, WakeFaults};

    struct NoSleepers;
    impl WakeFaults for NoSleepers {
        fn wake_faults(&self, _: PageRange) {}
    }

    #[test]
    fn words_are_those_of_the_first_look() {
        let table = ResidencyTable::new(16, Box::new(NoSleepers));
        let words = BlockWords::new(&table, PageRange::with_len(Page(4), 8));
        let fill = |page| match table.try_lock(Page(page)) {
            TryLock::Locked(lock) => lock.publish_pages(|word| word.to_system(Tick(0))),
            TryLock::Busy => panic!("page {page} is busy"),
        };
        assert_eq!(words.len(), 8);
        assert_eq!(
            words.get(0).map(Word::residency),
            Some(Residency::Untouched)
        );
        assert_eq!(words.get(8), None);
        // That has read no other word.
        fill(5);
        assert_eq!(words[1].residency(), Residency::System);
        fill(6);
        assert_eq!(words[2].residency(), Residency::Untouched);
        assert_eq!(words[..].len(), 8);
    }

    #[test]
    fn pages_are_found_again_for_each_place() {
        let words = BlockWords::read(vec![Word(0); 3]);
        let (here, there) = (PageSet::from_range(0..1), PageSet::from_range(1..3));
        let device = Place::Device(DeviceId(0));
        assert_eq!(words.resident(Place::System, || here), here);
        assert_eq!(words.resident(Place::System, || unreachable!()), here);
        assert_eq!(words.resident(device, || there), there);
    }
}
