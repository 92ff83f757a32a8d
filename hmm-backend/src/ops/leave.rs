//! Has pages leave a device's memory until few enough are left.

use std::sync::Arc;
use std::time::Duration;

use super::Progress;
use crate::fault::{Attempts, Faults, Unresolved};
use crate::migrate::Device;
use crate::observe::Cause;
use crate::pages::{Error, FatalCause, Frame};

/// Folios that are sent back at a time: neighbours move together.
const BATCH: usize = 64;

/// The least time to wait for other threads to unlock the device's pages, before the frames are checked again.
const PATIENCE: Duration = Duration::from_millis(10);

/// Which pages leave.
#[derive(Clone, Copy)]
pub(super) struct Leave {
    /// As many frames may stay in use.
    pub(super) keep: u32,
    /// As many pages have to leave after these, for the operation's progress.
    pub(super) later: u32,
    pub(super) cause: Cause,
}

/// Why pages are left.
pub(super) enum Stopped {
    /// The operation was cancelled.
    Cancelled(Error),
    /// This many pages too many stay in the device's memory, for this reason.
    Stuck(u32, FatalCause),
}

/// Sends folios back until no more frames are in use than may be. No frame may be allocated meanwhile as long as more are.
/// `victims` returns the first frames of the next folios, for at least this many frames if there are so many.
pub(super) fn leave(
    faults: &Faults,
    device: &Arc<Device>,
    leave: Leave,
    progress: &Progress,
    victims: impl Fn(u32) -> Vec<Frame>,
) -> Result<(), Stopped> {
    let Leave { keep, later, cause } = leave;
    let too_many = || device.used_frames().saturating_sub(keep);
    let mut attempts = Attempts::default();
    let mut left = too_many();
    while left > 0 {
        let mut unresolved = Unresolved::Retry;
        for victims in victims(left).chunks(BATCH) {
            if let Err(error) = faults.evict(device, victims, cause) {
                unresolved = error;
            }
            let left = too_many() + later;
            progress.left(left).map_err(Stopped::Cancelled)?;
        }
        let before = std::mem::replace(&mut left, too_many());
        if left == before {
            let wait = attempts.next(&unresolved);
            let wait = wait.map_err(|cause| Stopped::Stuck(left, cause))?;
            let used = device.wait_for_frames(keep + before, PATIENCE + wait);
            left = used.saturating_sub(keep);
            progress.left(left + later).map_err(Stopped::Cancelled)?;
        }
        if left < before {
            attempts = Attempts::default();
        }
    }
    Ok(())
}
