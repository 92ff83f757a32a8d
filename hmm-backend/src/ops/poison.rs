//! Memory failure: marks the contents of a page as lost.

use crate::migrate::Core;
use crate::pages::{Error, Page, PageRange};

/// See [`crate::Backend::memory_failure`].
pub(crate) fn memory_failure(core: &Core, page: Page) -> Result<(), Error> {
    core.check_range(PageRange::single(page))?;
    if core.guest.is_shared(page) {
        return Err(Error::Shared(page));
    }
    core.lose(core.lock_waiting(page), page)
}
