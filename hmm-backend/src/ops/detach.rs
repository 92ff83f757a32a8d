//! Taking a device away.

use std::time::Duration;

use crate::fault::{Attempts, EVICTION_BATCH, Faults, Unresolved};
use crate::observe::Cause;
use crate::pages::{DeviceId, Error, Page, PageRange};

/// See [`crate::Backend::detach`].
pub(crate) fn detach(faults: &Faults, id: DeviceId) -> Result<(), Error> {
    let core = &faults.core;
    let device = core.any_device(id)?;
    device.start_detaching();
    faults.pauses.look_again();
    // Between two looks at the frames, whoever holds pages lets go of them.
    const PATIENCE: Duration = Duration::from_millis(10);
    let mut attempts = Attempts::default();
    // No frame is given out any more: this only falls.
    let mut used = device.used_frames();
    while used > 0 {
        let mut unresolved = Unresolved::Retry;
        for victims in device.folios().chunks(EVICTION_BATCH as usize) {
            if let Err(error) = faults.evict(device, victims, Cause::Detach) {
                unresolved = error;
            }
        }
        let before = std::mem::replace(&mut used, device.used_frames());
        if used == before {
            let wait = attempts.next(&unresolved).map_err(|cause| Error::Detach {
                device: id,
                left: used,
                cause: cause.to_string(),
            })?;
            used = device.wait_for_frames(before, PATIENCE + wait);
        }
        if used < before {
            attempts = Attempts::default();
        }
    }
    // What it has for itself goes back to everybody. Whoever is at work on such a page while it is looked at
    // takes it away from the device as well.
    let all = PageRange::new(Page(0), Page(core.pages()));
    core.end_exclusive_access(all, |device| device == id);
    // It may still have translations of system pages in place.
    core.mirrors.invalidate_device(id, all);
    Ok(())
}
