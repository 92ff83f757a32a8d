//! Kinds of access, places of pages, and hints about pages.

use std::fmt;
use std::str::FromStr;

use super::ids::DeviceId;
use super::page::Page;

/// How a page is accessed. A write is the stronger access: it needs all that a read needs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store or an atomic operation.
    Write,
}

/// How much a device tells of its accesses to pages that it reaches without a fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Fidelity {
    /// Nothing: only its faults are known. This is what most hardware tells.
    #[default]
    Faults,
    /// The accessed and dirty bits of its page table, which the backend tests and clears, as with an IOMMU that has them.
    Bits,
    /// Every visit of a page, in order. Only an emulated device and a replayed trace can tell that much.
    All,
}

impl Fidelity {
    /// All of them, the least telling first.
    pub const EACH: [Fidelity; 3] = [Fidelity::Faults, Fidelity::Bits, Fidelity::All];

    /// Returns the name in configurations and reports.
    pub fn name(self) -> &'static str {
        match self {
            Fidelity::Faults => "faults",
            Fidelity::Bits => "bits",
            Fidelity::All => "all",
        }
    }
}

impl fmt::Display for Fidelity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Fidelity {
    type Err = String;

    fn from_str(text: &str) -> Result<Fidelity, String> {
        let named = Fidelity::EACH.into_iter().find(|it| it.name() == text);
        named.ok_or_else(|| {
            format!("`{text}`: a device tells of its faults, of accessed bits or of all accesses: write faults, bits or all")
        })
    }
}

/// What a device with [`Fidelity::All`] tells of: it has accessed this page that many times in a row, without a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Visit {
    /// The page.
    pub page: Page,
    /// The strongest of these accesses.
    pub access: Access,
    /// Number of accesses.
    pub times: u32,
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
