//! Where pages are, one byte each, as test_hmm's `SNAPSHOT` command reports it: the view of one device.

use crate::backend::Backend;
use crate::driver::DeviceId;
use crate::error::Error;
use crate::page::{MAX_ORDER, PageRange};
use crate::word::Residency;

/// Untouched: no contents yet.
pub const NONE: u8 = 0;
/// In system memory, the device may read.
pub const READ: u8 = 0x01;
/// In system memory or its own, the device may write.
pub const WRITE: u8 = 0x02;
/// Part of a 2 MiB folio.
pub const LARGE: u8 = 0x04;
/// In the device's own memory.
pub const DEVICE_LOCAL: u8 = 0x20;
/// In another device's memory.
pub const DEVICE_REMOTE: u8 = 0x30;
/// The contents are lost.
pub const ERROR: u8 = 0xff;

impl Backend {
    /// One byte for each page of the range, as `viewer` sees it. Each byte is true at some moment during
    /// the call.
    pub fn snapshot(&self, viewer: DeviceId, range: PageRange) -> Result<Vec<u8>, Error> {
        self.check_range(range)?;
        let byte = |page| {
            let word = self.table.word(page);
            let permission = if word.read_only() { READ } else { WRITE };
            match word.residency() {
                Residency::Untouched => NONE,
                Residency::System => permission,
                Residency::Device { device, order, .. } => {
                    let large = if order == MAX_ORDER { LARGE } else { 0 };
                    let place = if device == viewer {
                        DEVICE_LOCAL
                    } else {
                        DEVICE_REMOTE
                    };
                    place | permission | large
                }
                Residency::Poisoned => ERROR,
            }
        };
        Ok(range.pages().map(byte).collect())
    }
}
