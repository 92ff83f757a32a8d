//! Lets tests watch migrations between their phases, whatever the driver does there: a test can hold a
//! migration at a step or make it fail there.

use std::sync::Arc;

use crate::pages::{FaultError, PageRange};

/// The steps of a migration, in order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Step {
    /// The pages are locked, the driver has set its cookies; nothing has moved.
    BeforeCopy,
    /// No CPU and no device can reach the old place.
    Copied,
    /// The new place is valid; the pages are still locked.
    Committed,
    /// The pages are unlocked; the driver's call has not returned yet.
    Finalized,
}

/// Watches one migration go through its phases. A driver that wraps another one sets it with
/// [`crate::driver::ToDevice::watch`] or [`crate::driver::ToSystem::watch`] before it passes the migration on.
pub trait Watch: Send + Sync {
    /// Called when the migration of these pages has reached this step; the migration continues when the call
    /// returns. An error at [`Step::BeforeCopy`] or [`Step::Copied`] rolls the migration back, as if the phase
    /// had failed; at later steps an error is ignored. The same rules hold as in a driver's call: no access to
    /// managed memory.
    fn reached(&self, step: Step, pages: &[PageRange]) -> Result<(), FaultError>;
}

/// Calls the watch, if there is one, and returns its answer.
#[inline]
pub(super) fn notify(
    watch: &Option<Arc<dyn Watch>>,
    step: Step,
    pages: impl Iterator<Item = PageRange>,
) -> Result<(), FaultError> {
    match watch {
        Some(watch) => watch.reached(step, &pages.collect::<Vec<_>>()),
        None => Ok(()),
    }
}

/// Returns the pages if there is a watch to be called with them; otherwise an empty vector, which needs no
/// memory.
#[inline]
pub(super) fn pages_to_report(
    watch: &Option<Arc<dyn Watch>>,
    pages: impl Iterator<Item = PageRange>,
) -> Vec<PageRange> {
    match watch {
        Some(_) => pages.collect(),
        None => Vec::new(),
    }
}

/// Calls the watch for unlocked pages.
pub(super) fn notify_finalized(watch: &Option<Arc<dyn Watch>>, pages: &[PageRange]) {
    if let Some(watch) = watch {
        // The watch's error is ignored: the migration is complete.
        let _ = watch.reached(Step::Finalized, pages);
    }
}
