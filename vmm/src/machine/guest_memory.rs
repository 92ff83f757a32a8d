//! Managed memory as `vm-memory` sees it, for the VMM's own accesses.
//!
//! Such an access faults as a vCPU's does and is served by the fault service: its threads must not make one.

use thiserror::Error;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionCollectionError, GuestRegionMmap};

/// A part of a machine's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// Its guest-physical address.
    pub guest: u64,
    /// Its address in this process.
    pub host: *mut u8,
    /// Its size in bytes.
    pub size: u64,
}

/// Why parts of memory could not become guest memory.
#[derive(Debug, Error)]
pub enum GuestMemoryPartError {
    /// One part could not be mapped.
    #[error("{size:#x} bytes at {guest:#x}: {error}")]
    Region {
        /// Its guest-physical address.
        guest: u64,
        /// Its size.
        size: u64,
        /// The cause.
        #[source]
        error: MmapRegionError,
    },
    /// One part reaches beyond the end of the address space.
    #[error("{0:#x} bytes reach beyond the end of the address space")]
    End(u64),
    /// The parts do not fit together.
    #[error(transparent)]
    Collection(#[from] GuestRegionCollectionError),
}

/// Returns guest memory that consists of these parts. They must stay mapped for as long as it is used.
pub(crate) fn of(parts: &[Part]) -> Result<GuestMemoryMmap, GuestMemoryPartError> {
    let region = |part: &Part| {
        // SAFETY: the caller's part is mapped memory of this size that no Rust reference leads to.
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
