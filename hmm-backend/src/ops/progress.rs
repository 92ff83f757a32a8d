//! How far an operation on request is, and whether it is to end early.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::pages::Error;

/// The progress of one operation. Its thread tells it, other threads read it and may cancel the operation.
#[derive(Debug, Default)]
pub struct Progress {
    total: AtomicU32,
    done: AtomicU32,
    cancelled: AtomicBool,
}

impl Progress {
    /// Returns the number of pages that the operation has to look at, or to move; 0 before it has begun.
    pub fn total(&self) -> u32 {
        self.total.load(Ordering::Relaxed)
    }

    /// Returns how many of them it has done.
    pub fn done(&self) -> u32 {
        self.done.load(Ordering::Relaxed)
    }

    /// Has the operation end at its next step, with [`Error::Cancelled`], unless that was its last one.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Returns whether the operation is to end early.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// The operation begins, and has this many pages before it.
    pub(super) fn begin(&self, total: u32) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// This many pages are left. An error if there are some and the operation is to end early.
    pub(super) fn left(&self, pages: u32) -> Result<(), Error> {
        let total = self.total();
        let done = total.saturating_sub(pages);
        self.done.store(done, Ordering::Relaxed);
        match self.is_cancelled() && pages > 0 {
            true => Err(Error::Cancelled { done, total }),
            false => Ok(()),
        }
    }
}
