//! How tests name pages and words.

use std::ops::Range;

use hmm_backend::pages::{PAGE_SIZE, Page, PageRange};
use hmmvisor_abi::map;

/// What can stand for pages: a page's number, a [`Page`], `start..end` of numbers, or a [`PageRange`].
pub trait Pages {
    /// The pages.
    fn range(self) -> PageRange;
}

impl Pages for u32 {
    fn range(self) -> PageRange {
        PageRange::single(Page(self))
    }
}

impl Pages for Page {
    fn range(self) -> PageRange {
        PageRange::single(self)
    }
}

impl Pages for Range<u32> {
    fn range(self) -> PageRange {
        PageRange::new(Page(self.start), Page(self.end))
    }
}

impl Pages for PageRange {
    fn range(self) -> PageRange {
        self
    }
}

/// What can stand for a word of 8 bytes: a page's number, for its first word, or a page's number with the
/// word's index in the page.
pub trait Word {
    /// The page and the index in it.
    fn place(self) -> (u32, u32);
}

impl Word for u32 {
    fn place(self) -> (u32, u32) {
        (self, 0)
    }
}

impl Word for Page {
    fn place(self) -> (u32, u32) {
        (self.0, 0)
    }
}

impl Word for (u32, u32) {
    fn place(self) -> (u32, u32) {
        self
    }
}

/// The pages `start..end`.
pub fn pages(range: Range<u32>) -> PageRange {
    range.range()
}

/// Guest-physical address of a word of managed memory, for an accelerator's commands.
pub fn address(word: impl Word) -> u64 {
    let (page, index) = word.place();
    map::MANAGED + u64::from(page) * PAGE_SIZE + u64::from(index) * 8
}

/// The page and the word in it at a guest-physical address.
pub(crate) fn place_of(address: u64) -> (u32, u32) {
    let offset = address.wrapping_sub(map::MANAGED);
    ((offset / PAGE_SIZE) as u32, (offset % PAGE_SIZE / 8) as u32)
}
