//! A word of managed memory: the only way to its contents.

use core::sync::atomic::AtomicU64;

/// vCPUs and accelerators may use a word at any time, which is why all accesses are atomic.
pub type Word = &'static AtomicU64;

/// The word at an address.
///
/// # Safety
/// The address must be that of an aligned word in managed memory.
pub unsafe fn at(address: u64) -> Word {
    // SAFETY: managed memory is mapped, is there for ever and is only ever accessed as atomic words; the word is one of it,
    // as the caller says.
    unsafe { &*(address as *const AtomicU64) }
}
