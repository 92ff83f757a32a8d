//! A word of managed memory, in place of the guest's: it is in this process, and reports each access.

use core::sync::atomic::{AtomicU64, Ordering};

use hmm_backend::pages::Access;

use crate::machine::{self, Who};

/// A word of managed memory. Each access to it is reported.
pub struct Word {
    address: u64,
}

impl Word {
    /// Reports an access, and returns the word in this process.
    fn access(&self, access: Access) -> &'static AtomicU64 {
        machine::access(Who::Cpu, self.address, access)
    }

    /// Loads the word; reported as a read.
    pub fn load(&self, order: Ordering) -> u64 {
        self.access(Access::Read).load(order)
    }

    /// Stores to the word; reported as a write.
    pub fn store(&self, value: u64, order: Ordering) {
        self.access(Access::Write).store(value, order);
    }

    /// Adds to the word and returns what it held; reported as a write.
    pub fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.access(Access::Write).fetch_add(value, order)
    }

    /// Changes the word if `change` returns a value; reported as a write in any case.
    pub fn fetch_update(
        &self,
        set: Ordering,
        fetch: Ordering,
        change: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, u64> {
        self.access(Access::Write).fetch_update(set, fetch, change)
    }
}

/// The word at an address. Not unsafe here: an address that is no word of the machine's memory is a panic.
///
/// # Safety
/// Nothing is required here; the guest's own function of this name requires it.
pub unsafe fn at(address: u64) -> Word {
    Word { address }
}
