//! A block of zeros that is moved into the guest where a whole block is touched for the first time.
//!
//! userfaultfd itself fills memory with single pages, which the guest would map one by one: 512 faults of nested
//! paging instead of one. A block that the host fills elsewhere is a huge page if the host has one, and `UFFDIO_MOVE`
//! (Linux 6.8) moves it as one.

use parking_lot::{Mutex, MutexGuard};

use crate::memory::mmap::MemoryMap;
use crate::pages::{BLOCK_PAGES, Error, PAGE_SIZE};

/// The memory in which blocks of zeros are made. Between uses it holds no pages.
pub(in crate::memory) struct Blank(Mutex<MemoryMap>);

/// A block of zeros that is about to move. Pages that do not move are used next time: they still hold zeros.
pub(in crate::memory) struct Zeros<'b>(MutexGuard<'b, MemoryMap>);

impl Blank {
    const BYTES: u64 = BLOCK_PAGES * PAGE_SIZE;

    pub(in crate::memory) fn new() -> Result<Blank, Error> {
        let mapping = MemoryMap::new(Blank::BYTES, "hmm-blank")?;
        mapping.prefer_huge_pages();
        Ok(Blank(Mutex::new(mapping)))
    }

    /// Returns a block of zeros, or `None` if the host has no memory for a whole one.
    pub(in crate::memory) fn zeros(&self) -> Option<Zeros<'_>> {
        let mapping = self.0.lock();
        mapping.populate(0, Blank::BYTES).ok()?;
        Some(Zeros(mapping))
    }
}

impl Zeros<'_> {
    /// Host address of the block's page with this index.
    pub(in crate::memory) fn address(&self, index: u32) -> u64 {
        self.0.address(u64::from(index) * PAGE_SIZE)
    }
}
