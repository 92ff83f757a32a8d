//! The synchronization primitives of the residency table: those of the standard library, or those of `loom` under
//! `--cfg loom`, which tries all interleavings.

use std::sync::PoisonError;

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(loom)]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

/// Returns `n` zero words. The kernel supplies them zeroed, so words that are never used cost no memory.
#[cfg(not(loom))]
pub(crate) fn zeroed_words(n: usize) -> Box<[AtomicU64]> {
    // SAFETY: zero is a valid value of an atomic integer.
    unsafe { Box::<[AtomicU64]>::new_zeroed_slice(n).assume_init() }
}

/// Returns `n` zero words.
#[cfg(loom)]
pub(crate) fn zeroed_words(n: usize) -> Box<[AtomicU64]> {
    (0..n).map(|_| AtomicU64::new(0)).collect()
}

/// Locks a mutex even if it is poisoned: it guards no data that a panic could leave inconsistent.
pub(crate) fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
