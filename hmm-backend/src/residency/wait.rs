//! Where threads sleep for a page's lock: a small table of condition variables, hashed by page.
//!
//! The lost wake-up that must not happen: a waiter finds the page locked, the holder lets go, and only then
//! does the waiter fall asleep. So a waiter announces itself (the word's waiters bit) while it holds
//! the bucket's mutex, and the holder takes that mutex before it notifies.

use std::sync::PoisonError;

use super::sync::{Condvar, Mutex, MutexGuard};
use crate::pages::Page;

/// One under `loom`, whose condition variables are expensive.
const BUCKETS: usize = if cfg!(loom) { 1 } else { 64 };

struct Bucket {
    mutex: Mutex<()>,
    condvar: Condvar,
}

pub(crate) struct WaitTable {
    buckets: Box<[Bucket]>,
}

impl WaitTable {
    pub(crate) fn new() -> WaitTable {
        WaitTable {
            buckets: (0..BUCKETS)
                .map(|_| Bucket {
                    mutex: Mutex::new(()),
                    condvar: Condvar::new(),
                })
                .collect(),
        }
    }

    fn bucket(&self, page: Page) -> &Bucket {
        // Multiplied by an odd constant, so that the heads of large folios do not share a bucket.
        let hash = page.0.wrapping_mul(0x9e37_79b1) >> 16;
        &self.buckets[hash as usize % BUCKETS]
    }

    /// Sleeps until somebody notifies `page`, if `announce` (called with the bucket's mutex held) says
    /// that there is still something to wait for. May return early.
    pub(crate) fn wait(&self, page: Page, announce: impl FnOnce() -> bool) {
        let bucket = self.bucket(page);
        let guard = lock(&bucket.mutex);
        if announce() {
            drop(bucket.condvar.wait(guard));
        }
    }

    /// Wakes everybody who sleeps for `page`.
    pub(crate) fn notify(&self, page: Page) {
        let bucket = self.bucket(page);
        // Taken and dropped: a waiter that has announced itself is asleep afterwards.
        drop(lock(&bucket.mutex));
        bucket.condvar.notify_all();
    }
}

/// The mutexes guard no data of their own, so a panic elsewhere cannot have left them inconsistent.
fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
