//! Managed memory: as the guest's `memory`, but the words are in this process, and each access is told.

use crate::exit::fail;
use crate::machine::{self, Who};
use crate::pages::Pages;
use crate::sync::SpinLock;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use hmm_backend::Access;
use hmmvisor_abi::control::EXIT_USAGE;

/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// 8-byte words in a page.
pub const PAGE_WORDS: u64 = PAGE / 8;

/// Pages are numbered by their address: `address / PAGE`.
static FREE: SpinLock<Pages<4096>> = SpinLock::new(Pages::new());

/// A piece of managed memory. `Words` are names, not owners: copies name the same memory.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    address: u64,
    len: u64,
}

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

impl Words {
    /// Number of words.
    pub fn len(self) -> u64 {
        self.len
    }

    /// Where the piece is, for vCPUs and accelerators alike.
    pub fn address(self) -> u64 {
        self.address
    }

    /// Its size in bytes.
    pub fn bytes(self) -> u64 {
        self.len * 8
    }

    /// Part of the piece.
    pub fn slice(self, range: Range<u64>) -> Words {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?} of {self:?}"
        );
        Words {
            address: self.address + range.start * 8,
            len: range.end - range.start,
        }
    }

    /// A word.
    pub fn word(self, index: u64) -> Word {
        assert!(index < self.len, "word {index} of {self:?}");
        Word {
            address: self.address + index * 8,
        }
    }

    pub fn get(self, index: u64) -> u64 {
        self.word(index).load(Ordering::Relaxed)
    }

    pub fn set(self, index: u64, value: u64) {
        self.word(index).store(value, Ordering::Relaxed);
    }

    /// Sets the words of a range to what `value` says of their index.
    pub fn fill(self, range: Range<u64>, value: impl Fn(u64) -> u64) {
        for index in range {
            self.set(index, value(index));
        }
    }
}

/// Makes a range available, and nothing else: what an earlier run had is forgotten.
pub fn init(base: u64, bytes: u64) {
    let mut free = FREE.lock();
    *free = Pages::new();
    free.give(base / PAGE, bytes / PAGE);
}

/// Allocates whole pages for `len` words, page-aligned. Memory that is too small ends the run.
pub fn alloc(what: &str, len: u64) -> Words {
    let mut free = FREE.lock();
    let pages = len.div_ceil(PAGE_WORDS);
    match free.take(pages) {
        Some(first) => Words {
            address: first * PAGE,
            len,
        },
        None => fail!(
            EXIT_USAGE,
            "not enough memory for {what}: {} KiB of managed memory needed, {} KiB free; \
             give the guest more memory or choose smaller parameters",
            pages * PAGE / 1024,
            free.available() * PAGE / 1024
        ),
    }
}

/// Makes an allocated piece available for another `alloc`.
pub fn give_back(words: Words) {
    FREE.lock()
        .give(words.address / PAGE, words.len.div_ceil(PAGE_WORDS));
}
