//! Managed memory: the pages that migrate. All data of the workloads is here.

use crate::exit::fail;
use crate::pages::Pages;
use crate::sync::SpinLock;
use crate::word::{self, Word};
use core::ops::Range;
use core::sync::atomic::Ordering;
use hmmvisor_abi::BootInfo;
use hmmvisor_abi::control::EXIT_USAGE;

/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// 8-byte words in a page.
pub const PAGE_WORDS: u64 = PAGE / 8;

/// Pages are numbered by their address: `address / PAGE`.
static FREE: SpinLock<Pages<4096>> = SpinLock::new(Pages::new());

/// A piece of managed memory: 8-byte words that vCPUs and accelerators may use at any time, which is
/// why all accesses are atomic. `Words` are names, not owners: copies name the same memory.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    address: u64,
    len: u64,
}

impl Words {
    /// Words somewhere in managed memory, allocated or not; none if they are not all there or not aligned.
    pub fn managed(boot: &BootInfo, address: u64, len: u64) -> Option<Words> {
        let offset = address.checked_sub(boot.memory_base)?;
        let end = offset.checked_add(len.checked_mul(8)?)?;
        (address.is_multiple_of(8) && end <= boot.memory_size).then_some(Words { address, len })
    }

    /// Number of words.
    pub fn len(self) -> u64 {
        self.len
    }

    /// The piece's address, the same for vCPUs and accelerators.
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
        // SAFETY: `alloc` or `managed` made the piece out of managed memory, and it is aligned; the index is
        // inside.
        unsafe { word::at(self.address + index * 8) }
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

/// Makes the managed memory of the boot information available. To be called before `alloc`.
pub fn init(base: u64, bytes: u64) {
    let mut free = FREE.lock();
    *free = Pages::new();
    free.give(base / PAGE, bytes / PAGE);
}

/// Allocates whole pages for `len` words, page-aligned. They read as zeros unless they were given
/// back without a device's command to free them. Memory that is too small ends the run.
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
