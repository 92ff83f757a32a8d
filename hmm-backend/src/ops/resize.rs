//! Changes the size of a device's memory.
//!
//! A device has all frames that it can ever have from the beginning; those that are never used cost no memory. The size is a limit
//! on how many frames are in use, whichever they are. So the policy's order says what leaves a memory that shrinks.

use super::Progress;
use super::leave::{Leave, Stopped, leave};
use crate::fault::Faults;
use crate::observe::Cause;
use crate::pages::{BLOCK_PAGES, DeviceId, Error};

/// Frames by which the limit falls at a time. A fault that needs room meanwhile evicts this many at most besides its own.
const STEP: u32 = BLOCK_PAGES as u32;

/// See [`crate::Backend::resize`]. The device has at least this many frames.
pub(crate) fn resize(
    faults: &Faults,
    id: DeviceId,
    frames: u32,
    progress: &Progress,
) -> Result<(), Error> {
    let device = faults.core.any_device(id)?;
    let _alone = device.changing.lock();
    // A detach may have come before.
    faults.core.device(id)?;
    let before = device.capacity();
    let used = device.used_frames();
    progress.begin(used.saturating_sub(frames));
    let mut capacity = before.min(used);
    loop {
        capacity = frames.max(capacity.saturating_sub(STEP));
        device.set_capacity(capacity);
        let step = Leave {
            keep: capacity,
            later: capacity - frames,
            cause: Cause::Eviction,
        };
        let left = leave(faults, device, step, progress, |frames| {
            faults.victims(device, frames)
        });
        let stopped = match left {
            Ok(()) if capacity == frames => return Ok(()),
            Ok(()) => continue,
            Err(stopped) => stopped,
        };
        device.set_capacity(before);
        return Err(match stopped {
            Stopped::Cancelled(error) => error,
            Stopped::Stuck(left, cause) => Error::Resize {
                device: id,
                left: left + capacity - frames,
                cause,
            },
        });
    }
}
