//! Addresses of a program, far apart, become page numbers without gaps.
//!
//! The unit is the 2 MiB block, because that is what policies look at: pages that are neighbours in one stay neighbours.
//! Blocks are numbered in the order of their first accesses.

use std::collections::HashMap;

use hmm_backend::pages::{BLOCK_PAGES, PAGE_SIZE, Page, PageRange};

use crate::trace::limits;

/// Bytes of a block.
const BLOCK_SIZE: u64 = BLOCK_PAGES * PAGE_SIZE;

/// The number of each block of addresses.
#[derive(Default)]
pub struct Addresses {
    blocks: HashMap<u64, u32>,
    /// The block looked up last.
    last: Option<(u64, u32)>,
}

impl Addresses {
    /// Returns the pages that an access of `size` bytes touches, each by itself: they may lie in different blocks.
    pub fn pages(&mut self, address: u64, size: u64) -> Result<[Option<PageRange>; 2], String> {
        // No instruction accesses more than a page; two at most are touched.
        if size == 0 || size > PAGE_SIZE {
            return Err(format!(
                "an access of {size} bytes; there are 1 to {PAGE_SIZE}"
            ));
        }
        let last = address
            .checked_add(size - 1)
            .ok_or_else(|| format!("the access at {address:#x} goes beyond the last address"))?;
        let first = self.page(address)?;
        let second = match last / PAGE_SIZE == address / PAGE_SIZE {
            true => None,
            false => Some(PageRange::single(self.page(last)?)),
        };
        Ok([Some(PageRange::single(first)), second])
    }

    fn page(&mut self, address: u64) -> Result<Page, String> {
        let block = address / BLOCK_SIZE;
        let number = match self.last {
            Some((last, number)) if last == block => number,
            _ => {
                let next = self.blocks.len() as u32;
                if next >= limits::BLOCKS as u32 && !self.blocks.contains_key(&block) {
                    return Err(format!(
                        "the addresses up to here lie in more than {} blocks of 2 MiB, the most that a trace can tell of",
                        limits::BLOCKS
                    ));
                }
                *self.blocks.entry(block).or_insert(next)
            }
        };
        self.last = Some((block, number));
        let index = address / PAGE_SIZE % BLOCK_PAGES;
        Ok(Page(number * BLOCK_PAGES as u32 + index as u32))
    }

    /// Runs of pages and where they are from, see [`crate::trace::TraceTotals::mapping`].
    pub fn mapping(&self) -> Vec<(u32, u32, u64)> {
        let mut all: Vec<_> = self
            .blocks
            .iter()
            .map(|(block, number)| {
                let pages = BLOCK_PAGES as u32;
                (number * pages, pages, block * BLOCK_SIZE)
            })
            .collect();
        all.sort_unstable();
        all
    }
}

/// Returns the bytes of this many pages, rounded up to whole blocks.
pub fn whole_blocks(pages: u64) -> u64 {
    pages.div_ceil(BLOCK_PAGES) * BLOCK_SIZE
}
