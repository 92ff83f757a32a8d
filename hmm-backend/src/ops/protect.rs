//! Makes pages read-only for CPUs and devices, or writable again.

use crate::migrate::Core;
use crate::pages::{Error, PageRange, Permission};
use crate::residency::{FolioLock, Residency};

/// See [`crate::Backend::set_permission`].
pub(crate) fn set_permission(
    core: &Core,
    range: PageRange,
    permission: Permission,
) -> Result<(), Error> {
    core.check_range(range)?;
    if let Some(shared) = range.pages().find(|page| core.guest.is_shared(*page)) {
        return Err(Error::Shared(shared));
    }
    for part in range.split_by_block() {
        let mut page = part.start;
        while page < part.end {
            let mut lock = core.lock_waiting(page);
            let next = lock.range().end.min(part.end);
            if matches!(lock.word().residency(), Residency::Exclusive(_)) {
                core.revoke(lock).map_err(|error| Error::Protect {
                    page,
                    error: error.into(),
                })?;
                continue;
            }
            // All pages of a folio have the same permission, so cut the folio: only pages inside `part` change.
            let inside = |range: PageRange| range.overlap(part);
            let mut pieces = Vec::new();
            if lock.word().permission() == permission {
                drop(lock);
            } else if lock.word().residency().device().is_some() {
                core.invalidate_mirrors(std::iter::once(&mut lock));
                if let Some((device, source)) = core.device_source(lock) {
                    let mut sources = Vec::new();
                    source.carve(core, device, &inside, &mut sources);
                    pieces.extend(sources.into_iter().map(|source| source.lock));
                }
            } else {
                core.invalidate_mirrors(std::iter::once(&mut lock));
                lock.carve(&inside, &mut pieces);
            }
            for piece in pieces {
                change_permission(core, piece, permission)?;
            }
            page = next;
        }
    }
    Ok(())
}

fn change_permission(
    core: &Core,
    mut lock: FolioLock<'_>,
    permission: Permission,
) -> Result<(), Error> {
    let residency = lock.word().residency();
    // The system copy of a duplicate is always write-protected.
    if residency.reached_by_cpus() && !residency.duplicated() {
        // A CPU that writes before the new word is published faults, finds the lock, and waits for the word.
        core.guest
            .set_permission(lock.range(), permission)
            .map_err(|error| Error::Protect {
                page: lock.head(),
                error,
            })?;
    }
    lock.set_permission(permission);
    let range = lock.range();
    drop(lock);
    if permission == Permission::Writable {
        // Wake CPUs whose write was refused: otherwise they stay asleep, also where the page is not present.
        core.guest.wake_range(range);
    }
    Ok(())
}
