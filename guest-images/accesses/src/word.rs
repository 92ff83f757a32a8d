//! A word of managed memory, in place of the guest's: it is in this process, and reports each access.

use core::sync::atomic::{AtomicU64, Ordering};

use hmm_backend::pages::Access;

use crate::machine::{self, Who};

/// A word; what is done to it is told.
pub struct Word {
    address: u64,
}

impl Word {
    fn access(&self, access: Access) -> &'static AtomicU64 {
        machine::access(Who::Cpu, self.address, access)
    }

    pub fn load(&self, order: Ordering) -> u64 {
        self.access(Access::Read).load(order)
    }

    pub fn store(&self, value: u64, order: Ordering) {
        self.access(Access::Write).store(value, order);
    }

    pub fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.access(Access::Write).fetch_add(value, order)
    }

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
/// None is needed; the guest's has to ask for it.
pub unsafe fn at(address: u64) -> Word {
    Word { address }
}
