//! A block of zeros that moves to where memory is touched for the first time.
//!
//! What userfaultfd itself fills are single pages: guests would have each of them mapped by itself, 512 faults of nested
//! paging where one would do. A block that the host fills elsewhere is a huge page if the host has one, and
//! `UFFDIO_MOVE` takes it along as such (Linux 6.8).

use parking_lot::{Mutex, MutexGuard};

use crate::memory::mmap::Mapping;
use crate::pages::{BLOCK_PAGES, Error, PAGE_SIZE};

/// Where blocks of zeros are made. At rest it has no memory.
pub(super) struct Blank(Mutex<Mapping>);

/// A block of zeros that is about to move. What does not move is used next time: nobody writes it.
pub(super) struct Zeros<'b>(MutexGuard<'b, Mapping>);

impl Blank {
    const BYTES: u64 = BLOCK_PAGES * PAGE_SIZE;

    pub(super) fn new() -> Result<Blank, Error> {
        let mapping = Mapping::new(Blank::BYTES, "hmm-blank")?;
        mapping.prefer_huge_pages();
        Ok(Blank(Mutex::new(mapping)))
    }

    /// A block, unless the host has no memory for a whole one.
    pub(super) fn zeros(&self) -> Option<Zeros<'_>> {
        let mapping = self.0.lock();
        mapping.populate(0, Blank::BYTES).ok()?;
        Some(Zeros(mapping))
    }
}

impl Zeros<'_> {
    /// Host address of its page at this index.
    pub(super) fn address(&self, index: u32) -> u64 {
        self.0.address(u64::from(index) * PAGE_SIZE)
    }
}
