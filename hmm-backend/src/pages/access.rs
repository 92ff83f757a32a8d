//! Accesses, places, and what is said about pages.

use super::ids::DeviceId;

/// How a page is accessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store or an atomic operation.
    Write,
}

/// Where pages can be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Place {
    /// System memory.
    System,
    /// A device's memory.
    Device(DeviceId),
}

/// What the guest, or whoever configures it, says about pages; the same as NVIDIA UVM's hints.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hint {
    /// Where the pages should be, if anywhere.
    PreferredLocation(Option<Place>),
    /// Whether this device should reach the pages where they are, rather than have them migrated.
    AccessedBy(DeviceId, bool),
    /// Whether the pages are read far more often than written.
    ReadMostly(bool),
}
