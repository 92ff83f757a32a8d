//! Reports where pages are, one byte each, as test_hmm's `SNAPSHOT` command does: the view of one device.

use crate::migrate::Core;
use crate::pages::{DeviceId, Error, MAX_ORDER, PageRange};
use crate::residency::{Placed, Residency};

/// Untouched: the page has no contents yet.
pub const NONE: u8 = 0;
/// In system memory, and the device may read. Also for another device's duplicate.
pub const READ: u8 = 0x01;
/// In system memory or the device's own memory, and the device may write.
pub const WRITE: u8 = 0x02;
/// Part of a 2 MiB folio.
pub const LARGE: u8 = 0x04;
/// In the device's own private memory. With [`READ`], system memory may have a duplicate.
pub const DEVICE_LOCAL: u8 = 0x20;
/// In another device's private memory.
pub const DEVICE_REMOTE: u8 = 0x30;
/// In the device's own coherent memory.
pub const COHERENT_LOCAL: u8 = 0x40;
/// In another device's coherent memory.
pub const COHERENT_REMOTE: u8 = 0x50;
/// In system memory, exclusive to this device.
pub const EXCLUSIVE_LOCAL: u8 = 0x60;
/// In system memory, exclusive to another device.
pub const EXCLUSIVE_REMOTE: u8 = 0x70;
/// The contents are lost.
pub const ERROR: u8 = 0xff;

/// See [`crate::Backend::snapshot`].
pub(crate) fn take(core: &Core, viewer: DeviceId, range: PageRange) -> Result<Vec<u8>, Error> {
    core.check_range(range)?;
    let place = |device, local, remote| if device == viewer { local } else { remote };
    let byte = |page| {
        let word = core.table.word(page);
        let permission = if word.read_only() { READ } else { WRITE };
        match word.residency() {
            Residency::Untouched => NONE,
            Residency::System => permission,
            Residency::Device(Placed { device, order, .. }) => {
                let large = if order == MAX_ORDER { LARGE } else { 0 };
                place(device, DEVICE_LOCAL, DEVICE_REMOTE) | permission | large
            }
            Residency::Coherent(Placed { device, order, .. }) => {
                let large = if order == MAX_ORDER { LARGE } else { 0 };
                place(device, COHERENT_LOCAL, COHERENT_REMOTE) | permission | large
            }
            Residency::Duplicated(Placed { device, order, .. }) if device == viewer => {
                let large = if order == MAX_ORDER { LARGE } else { 0 };
                DEVICE_LOCAL | READ | large
            }
            Residency::Duplicated(_) => READ,
            Residency::Exclusive(device) => {
                place(device, EXCLUSIVE_LOCAL, EXCLUSIVE_REMOTE) | permission
            }
            Residency::Poisoned => ERROR,
        }
    };
    Ok(range.pages().map(byte).collect())
}
