//! Managed memory as `vm-memory` sees it, for the VMM's own accesses.
//!
//! They fault as a vCPU's do and are served by the same threads, so never access it from one of those.

use thiserror::Error;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionCollectionError, GuestRegionMmap};

/// A part of a machine's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// Where the guest sees it.
    pub guest: u64,
    /// Where this process has it.
    pub host: *mut u8,
    /// Its size in bytes.
    pub size: u64,
}

/// Why parts are no guest memory.
#[derive(Debug, Error)]
pub enum GuestMemoryPartError {
    /// One of them.
    #[error("{size:#x} bytes at {guest:#x}: {error}")]
    Region {
        /// Where.
        guest: u64,
        /// Its size.
        size: u64,
        /// Why not.
        error: MmapRegionError,
    },
    /// At the end of the address space.
    #[error("{0:#x} bytes reach beyond the end of the address space")]
    End(u64),
    /// All of them.
    #[error(transparent)]
    Collection(#[from] GuestRegionCollectionError),
}

/// These parts of managed memory, which must stay mapped for as long as the result is used, as guest memory.
pub(crate) fn of(parts: &[Part]) -> Result<GuestMemoryMmap, GuestMemoryPartError> {
    let region = |part: &Part| {
        // SAFETY: the caller's part is mapped memory of this size that nobody has Rust references to.
        let region = unsafe {
            MmapRegionBuilder::<()>::new(part.size as usize)
                .with_raw_mmap_pointer(part.host)
                .build()
        };
        let region = region.map_err(|error| GuestMemoryPartError::Region {
            guest: part.guest,
            size: part.size,
            error,
        })?;
        let end = GuestMemoryPartError::End(part.size);
        GuestRegionMmap::new(region, GuestAddress(part.guest)).ok_or(end)
    };
    let regions: Vec<_> = parts.iter().map(region).collect::<Result<_, _>>()?;
    Ok(GuestMemoryMmap::from_regions(regions)?)
}
