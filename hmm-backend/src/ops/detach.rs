//! Detaches a device.

use std::time::Duration;

use crate::fault::{Attempts, Faults, Unresolved};
use crate::observe::Cause;
use crate::pages::{DeviceId, Error, Page, PageRange};

/// Folios that are sent back at a time: neighbours move together.
const BATCH: usize = 64;

/// See [`crate::Backend::detach`].
pub(crate) fn detach(faults: &Faults, id: DeviceId) -> Result<(), Error> {
    let core = &faults.core;
    let device = core.any_device(id)?;
    device.start_detaching();
    faults.pauses.look_again();
    // The least time to wait for other threads to unlock the device's pages, before the frames are checked
    // again.
    const PATIENCE: Duration = Duration::from_millis(10);
    let mut attempts = Attempts::default();
    // The number only falls, because no frame is allocated any more.
    let mut used = device.used_frames();
    while used > 0 {
        let mut unresolved = Unresolved::Retry;
        for victims in device.folios().chunks(BATCH) {
            if let Err(error) = faults.evict(device, victims, Cause::Detach) {
                unresolved = error;
            }
        }
        let before = std::mem::replace(&mut used, device.used_frames());
        if used == before {
            let wait = attempts.next(&unresolved).map_err(|cause| Error::Detach {
                device: id,
                left: used,
                cause,
            })?;
            used = device.wait_for_frames(before, PATIENCE + wait);
        }
        if used < before {
            attempts = Attempts::default();
        }
    }
    // Revoke the device's exclusive pages. A thread that has locked such a page during this loop takes the page
    // away from the device itself.
    let all = PageRange::new(Page(0), Page(core.pages()));
    core.end_exclusive_access(all, |device| device == id);
    // The device may still have translations of system pages that it uses in place.
    core.mirrors.invalidate_device(id, all);
    Ok(())
}
