//! Numbers of devices and of their frames.

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
    /// Its first frame, aligned to the folio's size.
    pub frame: Frame,
    /// It has `1 << order` frames.
    pub order: u8,
    /// The guest page whose contents the first frame holds. For information: the cookie must not
    /// depend on it, because a folio can outlive its address.
    pub page: Page,
    /// The driver's word.
    pub cookie: u64,
}

impl DeviceFolio {
    /// Number of pages.
    pub fn pages(&self) -> u32 {
        1 << self.order
    }
}
