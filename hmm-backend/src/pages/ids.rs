//! Identities of devices, their frames and their folios.

use super::page::Page;

/// Number of an attached device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DeviceId(pub u8);

/// A page-sized slot of one device's memory, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Frame(pub u32);

/// A folio in device memory, as the driver sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceFolio {
    /// The device.
    pub device: DeviceId,
    /// The first frame, aligned to the folio's size.
    pub frame: Frame,
    /// The folio has `1 << order` frames.
    pub order: u8,
    /// The guest page whose contents the first frame holds. For information only: the cookie must not depend on it,
    /// because a folio can live longer than its guest address.
    pub page: Page,
    /// The value that the driver chose for this folio.
    pub cookie: u64,
}

impl DeviceFolio {
    /// Number of pages.
    pub fn pages(&self) -> u32 {
        1 << self.order
    }
}
