//! Where pages are, and moving them.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// A range of pages of 4 KiB. Pages are numbered by their guest-physical address divided by 4096, from the beginning of
/// managed memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Pages {
    /// The first page.
    pub first: u32,
    /// The number of pages, from 1.
    #[param(minimum = 1)]
    #[schema(minimum = 1)]
    pub pages: u32,
}

/// How many pages are where. Each page is counted as it is at some moment during the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Memory {
    /// Pages of managed memory, the hole of an operating system's memory included.
    pub pages: u64,
    /// Never touched, or freed: they have no memory.
    pub untouched_pages: u64,
    /// In system memory.
    pub system_pages: u64,
    /// In accelerators' private memory.
    pub device_pages: u64,
    /// In accelerators' coherent memory, which CPUs reach in place.
    pub coherent_pages: u64,
    /// In private memory and in system memory, for reading.
    pub duplicated_pages: u64,
    /// In system memory, out of reach of all but one accelerator.
    pub exclusive_pages: u64,
    /// Whose contents are lost.
    pub poisoned_pages: u64,
    /// Which CPUs and accelerators may only read, wherever they are.
    pub read_only_pages: u64,
}

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Where {
    /// Nowhere: it has no contents.
    Untouched,
    /// In system memory.
    System,
    /// In an accelerator's private memory.
    Device,
    /// In an accelerator's coherent memory.
    Coherent,
    /// In an accelerator's private memory and in system memory.
    Duplicated,
    /// In system memory, exclusive to an accelerator.
    Exclusive,
    /// Its contents are lost.
    Poisoned,
}

impl Where {
    /// All places, ordered by their numbers in [`Byte`].
    pub const ALL: [Where; 7] = [
        Where::Untouched,
        Where::System,
        Where::Device,
        Where::Coherent,
        Where::Duplicated,
        Where::Exclusive,
        Where::Poisoned,
    ];
}

/// Where a page is, in one byte: bits 0 to 2 are the number of the place in [`Where::ALL`], bit 3 says that the page is
/// read-only, bits 4 to 7 are the number of the accelerator if the place is one of an accelerator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Byte(pub u8);

impl Byte {
    const READ_ONLY: u8 = 1 << 3;

    /// Makes the byte of a page.
    pub fn new(place: Where, device: Option<u8>, read_only: bool) -> Byte {
        let flag = if read_only { Byte::READ_ONLY } else { 0 };
        Byte(place as u8 | flag | device.unwrap_or(0) << 4)
    }

    /// Where the page is. A number that is no place reads as poisoned.
    pub fn place(self) -> Where {
        let place = Where::ALL.get(usize::from(self.0 & 7));
        place.copied().unwrap_or(Where::Poisoned)
    }

    /// The accelerator, if the place is one of an accelerator.
    pub fn device(self) -> Option<u8> {
        let place = self.place();
        let of_device = !matches!(place, Where::Untouched | Where::System | Where::Poisoned);
        of_device.then_some(self.0 >> 4)
    }

    /// Whether the page is read-only.
    pub fn read_only(self) -> bool {
        self.0 & Byte::READ_ONLY != 0
    }
}

/// Neighbouring pages in the same place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Run {
    /// The first page.
    pub first: u32,
    /// The number of pages.
    pub pages: u32,
    /// Where they are.
    pub place: Where,
    /// Which accelerator, if the place is one of an accelerator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<u8>,
    /// Whether they may only be read.
    pub read_only: bool,
}

/// Where the pages of a range are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Residency {
    /// The whole range, in order.
    pub runs: Vec<Run>,
}

/// Moves pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Migrate {
    /// The first page.
    pub first: u32,
    /// The number of pages, from 1.
    #[schema(minimum = 1)]
    pub pages: u32,
    /// Where to: `system`, or an accelerator like `device0`.
    #[schema(pattern = "^(system|device[0-9]+)$")]
    pub to: String,
}

/// What has moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Migrated {
    /// Number of pages that have moved. The others were there already, have no contents, are pinned, or could not move.
    pub pages: u64,
}

/// What CPUs and accelerators may do with pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Permission {
    /// Read only. A CPU that writes takes a machine check, an accelerator's command fails.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

/// Changes what may be done with pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Protect {
    /// The first page.
    pub first: u32,
    /// The number of pages, from 1.
    #[schema(minimum = 1)]
    pub pages: u32,
    /// What may be done with them.
    pub permission: Permission,
}

/// Tells the policy something about pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Hint {
    /// The first page.
    pub first: u32,
    /// The number of pages, from 1.
    #[schema(minimum = 1)]
    pub pages: u32,
    /// What is said, as in a configuration: `read-mostly`, `preferred:device0`.
    #[schema(
        pattern = "^(preferred:(system|none|device[0-9]+)|(not-)?accessed-by:device[0-9]+|(not-)?read-mostly)$"
    )]
    pub hint: String,
}

/// Loses the contents of a page, as if the memory behind it had failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Poison {
    /// The page.
    pub page: u32,
}

/// Pages that are kept in system memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pin {
    /// The pin's number: what ends it.
    pub pin: u64,
    /// The first page.
    pub first: u32,
    /// The number of pages.
    pub pages: u32,
}

/// The pins that were made by the API and have not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pins {
    /// In the order of their numbers.
    pub pins: Vec<Pin>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_says_what_it_was_made_of() {
        for (number, place) in Where::ALL.into_iter().enumerate() {
            assert_eq!(place as usize, number);
            let of_device = !matches!(place, Where::Untouched | Where::System | Where::Poisoned);
            let device = of_device.then_some(15);
            for read_only in [false, true] {
                let byte = Byte::new(place, device, read_only);
                assert_eq!(byte.place(), place);
                assert_eq!((byte.device(), byte.read_only()), (device, read_only));
            }
        }
    }
}
