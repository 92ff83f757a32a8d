//! Memory that is about to be written as a whole, by a boot loader for instance.

use std::time::Duration;

use crate::backend::{Backend, set_of};
use crate::error::Error;
use crate::page::PageRange;
use crate::policy::Access;

impl Backend {
    /// Fills untouched pages of the range with zeros, whole blocks at a time: much less work than a fault for each of them, and
    /// nobody asks the policy. Pages that are busy, or that the host has no memory for, stay untouched and fault later.
    pub fn prefill(&self, range: PageRange) -> Result<(), Error> {
        self.check_range(range)?;
        for part in range.split_by_block() {
            // What could not be filled says so again to whoever touches it.
            let mut unresolved = Vec::new();
            let (block, pages) = (part.start.block(), set_of(part));
            self.populate(
                block,
                &pages,
                Access::Write,
                Duration::ZERO,
                &mut unresolved,
            );
        }
        Ok(())
    }
}
