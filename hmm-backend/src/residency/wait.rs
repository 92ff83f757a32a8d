//! The table of condition variables on which threads sleep for a page's lock, hashed by page.
//!
//! The table prevents a lost wake-up: a waiter finds the page locked, the holder unlocks it, and only then does the
//! waiter fall asleep. A waiter therefore sets the word's waiters bit while it holds the bucket's mutex, and the holder
//! takes that mutex before it notifies.

use super::sync::{Condvar, Mutex, lock};
use crate::pages::Page;

/// Number of buckets. One under `loom`, whose condition variables are expensive.
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
        // The odd factor spreads the heads of large folios over different buckets.
        let hash = page.0.wrapping_mul(0x9e37_79b1) >> 16;
        &self.buckets[hash as usize % BUCKETS]
    }

    /// Sleeps until [`Self::notify`] is called for `page`, if `announce` (called with the bucket's mutex held)
    /// returns true. May return early.
    pub(crate) fn wait(&self, page: Page, announce: impl FnOnce() -> bool) {
        let bucket = self.bucket(page);
        let guard = lock(&bucket.mutex);
        if announce() {
            drop(bucket.condvar.wait(guard));
        }
    }

    /// Wakes all threads that sleep for `page`.
    pub(crate) fn notify(&self, page: Page) {
        let bucket = self.bucket(page);
        // After the mutex was taken, every waiter that has announced itself is asleep and will be notified.
        drop(lock(&bucket.mutex));
        bucket.condvar.notify_all();
    }
}
