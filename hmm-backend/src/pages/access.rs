//! Kinds of access, places of pages, and hints about pages.

use super::ids::DeviceId;

/// How a page is accessed. A write is the stronger access: it needs all that a read needs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store or an atomic operation.
    Write,
}

/// What CPUs and devices may do with a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Permission {
    /// Only read it.
    ReadOnly,
    /// Read and write it.
    Writable,
}

/// Where pages can be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Place {
    /// System memory.
    System,
    /// A device's memory.
    Device(DeviceId),
}

/// What the guest, or the user who configures it, says about pages; the same hints as NVIDIA UVM's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hint {
    /// The place where the pages should be; `None` takes a preference back.
    PreferredLocation(Option<Place>),
    /// Whether this device should access the pages in place instead of migrating them.
    AccessedBy(DeviceId, bool),
    /// Whether the pages are read far more often than written.
    ReadMostly(bool),
}
