//! A look at migrations between their phases, whatever the driver does there: for tests that hold a migration at
//! a way-point or make it fail there.

use std::sync::Arc;

use crate::pages::{FaultError, PageRange};

/// A way-point of a migration, in order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Step {
    /// The pages are locked, the driver has set its cookies; nothing has moved.
    BeforeCopy,
    /// The contents are out of reach of CPUs and devices.
    Copied,
    /// The new place counts; the pages are still locked.
    Committed,
    /// The pages are let go of; the driver's call has not returned yet.
    Finalized,
}

/// Looks on while one migration goes through its phases; a driver that wraps another one sets it with
/// [`crate::ToDevice::watch`] or [`crate::ToSystem::watch`] before it hands the migration on.
pub trait Watch: Send + Sync {
    /// The migration of these pages has come to this point and goes on when the call returns. An error at
    /// [`Step::BeforeCopy`] or [`Step::Copied`] rolls the migration back, as if the phase had failed; later ones are
    /// too late and are ignored. The same rules hold as in a driver's call: no access to managed memory.
    fn reached(&self, step: Step, pages: &[PageRange]) -> Result<(), FaultError>;
}

/// Tells the watch, if there is one.
pub(super) fn tell(
    watch: &Option<Arc<dyn Watch>>,
    step: Step,
    pages: impl Iterator<Item = PageRange>,
) -> Result<(), FaultError> {
    match watch {
        Some(watch) => watch.reached(step, &pages.collect::<Vec<_>>()),
        None => Ok(()),
    }
}

/// The pages, if somebody will be told of them; without, an empty vector costs nothing.
pub(super) fn told(
    watch: &Option<Arc<dyn Watch>>,
    pages: impl Iterator<Item = PageRange>,
) -> Vec<PageRange> {
    match watch {
        Some(_) => pages.collect(),
        None => Vec::new(),
    }
}

/// Tells the watch that these pages are let go of, if there are any: a second publication has none.
pub(super) fn tell_finalized(watch: &Option<Arc<dyn Watch>>, pages: &[PageRange]) {
    if let (Some(watch), false) = (watch, pages.is_empty()) {
        // Too late for errors.
        let _ = watch.reached(Step::Finalized, pages);
    }
}
