//! Detaches a device.

use super::Progress;
use super::leave::{Leave, Stopped, leave};
use crate::fault::Faults;
use crate::observe::Cause;
use crate::pages::{DeviceId, Error, Page, PageRange};

/// See [`crate::Backend::detach`].
pub(crate) fn detach(faults: &Faults, id: DeviceId, progress: &Progress) -> Result<(), Error> {
    let core = &faults.core;
    let device = core.any_device(id)?;
    let _alone = device.changing.lock();
    // An attempt before this one may have failed.
    let was_attached = !device.detaching();
    device.start_detaching();
    faults.pauses.look_again();
    progress.begin(device.used_frames());
    let all = Leave {
        keep: 0,
        later: 0,
        cause: Cause::Detach,
    };
    // No frame is allocated any more.
    match leave(faults, device, all, progress, |_| device.folios()) {
        Ok(()) => {}
        Err(Stopped::Cancelled(error)) => {
            if was_attached {
                device.stay_attached();
            }
            return Err(error);
        }
        Err(Stopped::Stuck(left, cause)) => {
            return Err(Error::Detach {
                device: id,
                left,
                cause,
            });
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
