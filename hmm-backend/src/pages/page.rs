//! Pages, ranges of pages and sets of pages within a block.

use std::fmt;
use std::ops::Range;

/// Bytes in a page.
pub const PAGE_SIZE: u64 = 4096;
/// Pages in a block (2 MiB of guest memory). Policies look at one block at a time, the largest folio covers one
/// block, and a block never spans two userfaultfds.
pub const BLOCK_PAGES: u64 = 512;
/// The order of the largest folio: `1 << MAX_ORDER` pages.
pub const MAX_ORDER: u8 = 9;

const _: () = assert!(1 << MAX_ORDER == BLOCK_PAGES);

/// Number of a page within managed memory, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Page(pub u32);

impl Page {
    /// The page `n` pages after this one. Saturates at the highest page number, which lies outside of any managed
    /// memory.
    pub fn plus(self, n: u32) -> Page {
        Page(self.0.saturating_add(n))
    }

    /// Byte offset of the page within managed memory.
    pub fn offset(self) -> u64 {
        u64::from(self.0) * PAGE_SIZE
    }

    /// The block that holds the page.
    pub fn block(self) -> Block {
        Block(self.0 / BLOCK_PAGES as u32)
    }

    /// The page's index within its block.
    pub fn index_in_block(self) -> usize {
        (self.0 % BLOCK_PAGES as u32) as usize
    }

    /// The first page of the naturally aligned group of `1 << order` pages that contains this page.
    pub fn folio_head(self, order: u8) -> Page {
        Page(self.0 & !((1 << order) - 1))
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {:#x}", self.0)
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Number of a 2 MiB block within managed memory, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Block(pub u32);

impl Block {
    /// The block's first page.
    pub fn first_page(self) -> Page {
        Page(self.0 * BLOCK_PAGES as u32)
    }

    /// The page at `index` (below [`BLOCK_PAGES`]) of the block.
    pub fn page(self, index: usize) -> Page {
        debug_assert!(index < BLOCK_PAGES as usize);
        self.first_page().plus(index as u32)
    }
}

/// A run of pages, `start..end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRange {
    /// First page.
    pub start: Page,
    /// One past the last page.
    pub end: Page,
}

impl PageRange {
    /// The pages `start..end`; empty if `end <= start`.
    pub fn new(start: Page, end: Page) -> PageRange {
        PageRange {
            start,
            end: end.max(start),
        }
    }

    /// `n` pages from `start`.
    pub fn with_len(start: Page, n: u32) -> PageRange {
        PageRange::new(start, start.plus(n))
    }

    /// One page.
    pub fn single(page: Page) -> PageRange {
        PageRange::with_len(page, 1)
    }

    /// Number of pages.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u32 {
        self.end.0 - self.start.0
    }

    /// Whether the range has no pages.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `page` is in the range.
    pub fn contains(&self, page: Page) -> bool {
        self.start <= page && page < self.end
    }

    /// The number of pages that are in both ranges.
    pub fn overlap(&self, other: PageRange) -> u32 {
        PageRange::new(self.start.max(other.start), self.end.min(other.end)).len()
    }

    /// The pages in ascending order.
    pub fn pages(self) -> impl DoubleEndedIterator<Item = Page> + ExactSizeIterator {
        (self.start.0..self.end.0).map(Page)
    }

    /// The indices within their block of the pages of this range, which must lie within one block.
    fn indices_in_block(self) -> Range<usize> {
        let start = self.start.index_in_block();
        start..start + self.len() as usize
    }

    /// Removes the part of the range that lies in its first `n` blocks, and returns it.
    pub fn take_blocks(&mut self, n: u32) -> PageRange {
        let end = self
            .start
            .block()
            .0
            .saturating_add(n)
            .saturating_mul(BLOCK_PAGES as u32);
        let taken = PageRange::new(self.start, Page(end).min(self.end));
        self.start = taken.end;
        taken
    }

    /// Cuts the range at block boundaries and returns the parts in ascending order.
    pub fn split_by_block(mut self) -> impl Iterator<Item = PageRange> {
        std::iter::from_fn(move || (!self.is_empty()).then(|| self.take_blocks(1)))
    }
}

impl fmt::Debug for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pages {}..{}", self.start, self.end)
    }
}

/// A set of pages of one block, as a bitmap.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct PageSet([u64; (BLOCK_PAGES / 64) as usize]);

impl PageSet {
    /// The empty set.
    pub const EMPTY: PageSet = PageSet([0; 8]);

    /// The set of the pages with index in `range`.
    #[inline]
    pub fn from_range(range: Range<usize>) -> PageSet {
        let mut set = PageSet::EMPTY;
        set.insert_range(range);
        set
    }

    /// The set of the pages of a range that lies within one block.
    #[inline]
    pub fn of(range: PageRange) -> PageSet {
        PageSet::from_range(range.indices_in_block())
    }

    /// The set of the pages with an index below `len` for which `has` returns true.
    pub fn from_fn(len: usize, has: impl Fn(usize) -> bool) -> PageSet {
        let mut set = PageSet::EMPTY;
        for (i, word) in set.0.iter_mut().enumerate() {
            for bit in 0..64.min(len.saturating_sub(i * 64)) {
                *word |= u64::from(has(i * 64 + bit)) << bit;
            }
        }
        set
    }

    /// The bitmap: index `i` is bit `i % 64` of word `i / 64`.
    #[inline]
    pub fn bits(&self) -> [u64; (BLOCK_PAGES / 64) as usize] {
        self.0
    }

    /// The set with this bitmap.
    #[inline]
    pub fn from_bits(bits: [u64; (BLOCK_PAGES / 64) as usize]) -> PageSet {
        PageSet(bits)
    }

    /// Adds the page with this index in the block.
    pub fn insert(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    /// Adds the pages with index in `range`.
    #[inline]
    pub fn insert_range(&mut self, range: Range<usize>) {
        for i in words_of(&range) {
            self.0[i] |= word_mask(i, &range);
        }
    }

    /// Removes the page with this index.
    pub fn remove(&mut self, index: usize) {
        self.0[index / 64] &= !(1 << (index % 64));
    }

    /// Whether the page with this index is in the set.
    pub fn contains(&self, index: usize) -> bool {
        self.0[index / 64] >> (index % 64) & 1 != 0
    }

    /// Whether there is no page in the set.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|w| *w == 0)
    }

    /// Number of pages in the set.
    #[inline]
    pub fn count(&self) -> usize {
        // Most sets have few pages, and without a processor's own instruction, each word to count takes long.
        let words = self.0.iter().filter(|word| **word != 0);
        words.map(|word| word.count_ones() as usize).sum()
    }

    /// Number of pages in the set with index in `range`.
    #[inline]
    pub fn count_in(&self, range: Range<usize>) -> usize {
        let masked = |i: usize| (self.0[i] & word_mask(i, &range)).count_ones() as usize;
        words_of(&range).map(masked).sum()
    }

    /// Number of pages that are in the set and in a range within the block.
    #[inline]
    pub fn count_of(&self, range: PageRange) -> u32 {
        self.count_in(range.indices_in_block()) as u32
    }

    /// The pages that are in this set, in `other`, or in both.
    #[inline]
    pub fn union(mut self, other: &PageSet) -> PageSet {
        for (w, o) in self.0.iter_mut().zip(other.0) {
            *w |= o;
        }
        self
    }

    /// The pages of this set that are also in `other`.
    #[inline]
    pub fn intersection(mut self, other: &PageSet) -> PageSet {
        for (w, o) in self.0.iter_mut().zip(other.0) {
            *w &= o;
        }
        self
    }

    /// The pages of this set that are not in `other`.
    #[inline]
    pub fn difference(mut self, other: &PageSet) -> PageSet {
        for (w, o) in self.0.iter_mut().zip(other.0) {
            *w &= !o;
        }
        self
    }

    /// The lowest index in the set.
    #[inline]
    pub fn first(&self) -> Option<usize> {
        self.next_where(0, |word| word)
    }

    /// The indices in the set, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        let (mut i, mut rest) = (0, self.0[0]);
        std::iter::from_fn(move || {
            while rest == 0 {
                i += 1;
                rest = *self.0.get(i)?;
            }
            let bit = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            Some(i * 64 + bit)
        })
    }

    /// The maximal runs of consecutive indices, in ascending order.
    pub fn runs(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next_where(at, |word| word)?;
            at = self.end_of_run(start);
            Some(start..at)
        })
    }

    /// Returns the first index after `index` whose membership in the set differs from that of `index`, or the end of
    /// the block.
    pub(crate) fn end_of_run(&self, index: usize) -> usize {
        let end = match self.contains(index) {
            true => self.next_where(index, |word| !word),
            false => self.next_where(index, |word| word),
        };
        end.unwrap_or(BLOCK_PAGES as usize)
    }

    /// Returns the lowest index from `at` on whose bit is set after `view` has transformed the bitmap word. Runs are
    /// found by their two ends instead of page by page.
    fn next_where(&self, at: usize, view: impl Fn(u64) -> u64) -> Option<usize> {
        let mut ignore = (1u64 << (at % 64)) - 1;
        for (i, word) in self.0.iter().enumerate().skip(at / 64) {
            let left = view(*word) & !ignore;
            if left != 0 {
                return Some(i * 64 + left.trailing_zeros() as usize);
            }
            ignore = 0;
        }
        None
    }
}

/// The bitmap words that a range of indices touches, which are usually few.
fn words_of(range: &Range<usize>) -> Range<usize> {
    range.start / 64..range.end.div_ceil(64).min((BLOCK_PAGES / 64) as usize)
}

/// The bits of bitmap word `i` whose indices are in `range`.
fn word_mask(i: usize, range: &Range<usize>) -> u64 {
    let low = range.start.clamp(i * 64, i * 64 + 64) - i * 64;
    let high = range.end.clamp(i * 64, i * 64 + 64) - i * 64;
    if low >= high {
        return 0;
    }
    (u64::MAX >> (64 - (high - low))) << low
}

impl FromIterator<usize> for PageSet {
    fn from_iter<T: IntoIterator<Item = usize>>(iter: T) -> Self {
        let mut set = PageSet::EMPTY;
        iter.into_iter().for_each(|i| set.insert(i));
        set
    }
}

impl fmt::Debug for PageSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.runs()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_counts_cross_word_boundaries() {
        let set = PageSet::from_range(60..70).union(&PageSet::from_range(511..512));
        assert_eq!(set.count(), 11);
        assert_eq!(set.count_in(63..65), 2);
        assert_eq!(set.runs().collect::<Vec<_>>(), [60..70, 511..512]);
        assert_eq!(PageSet::from_range(0..512).count(), 512);
        assert!(PageSet::from_range(5..5).is_empty());
        assert_eq!(PageSet::from_range(64..512).runs().next(), Some(64..512));
        assert_eq!(PageSet::from_range(0..64).runs().next(), Some(0..64));
        assert_eq!(PageSet::EMPTY.runs().next(), None);
        let thirds = PageSet::from_fn(100, |i| i % 3 == 0);
        assert_eq!(thirds, (0..100).step_by(3).collect());
    }

    #[test]
    fn a_bitmap_gives_its_set_back() {
        let set = PageSet::from_range(65..66).union(&PageSet::from_range(500..512));
        assert_eq!(set.bits()[1], 2);
        assert_eq!(PageSet::from_bits(set.bits()), set);
    }

    #[test]
    fn ranges_split_at_blocks() {
        let parts: Vec<_> = PageRange::new(Page(510), Page(1025))
            .split_by_block()
            .collect();
        let bounds: Vec<_> = parts.iter().map(|r| (r.start.0, r.end.0)).collect();
        assert_eq!(bounds, [(510, 512), (512, 1024), (1024, 1025)]);
    }
}
