//! Puts a program and its boot information into memory.

use std::ptr;
use std::sync::Arc;

use hmm_backend::Backend;
use hmm_backend::pages::{PAGE_SIZE, Page, PageRange};
use hmmvisor_abi::{BOOT_VERSION, BootInfo, boot, map};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::guest::program::image::{Image, Segment};

/// Room for the command line, in bytes.
pub const CMDLINE_LIMIT: usize = map::BOOT_INFO_SIZE as usize - size_of::<BootInfo>();

/// Why a program could not be put into memory.
#[derive(Debug, Error)]
pub enum BootError {
    /// Boot RAM could not be written: a bug, as everything has been checked before.
    #[error("writing the guest into boot RAM: {0}; this is a bug in Hmmvisor")]
    BootRam(#[from] GuestMemoryError),
    /// Managed memory could not be written.
    #[error("writing the guest into managed memory: {0}")]
    Managed(#[from] hmm_backend::Error),
    /// The command line has no room.
    #[error(
        "passing parameters to the guest: the command line has {len} bytes, but there is room for {CMDLINE_LIMIT}; use fewer or shorter parameters"
    )]
    Cmdline {
        /// Its length.
        len: usize,
    },
}

/// Puts an image into memory. Its place has been checked; memory that it does not fill is zero.
pub fn load(
    image: &Image<'_>,
    ram: &GuestMemoryMmap,
    backend: Option<&Arc<Backend>>,
) -> Result<(), BootError> {
    for segment in image
        .segments
        .iter()
        .filter(|segment| !segment.data.is_empty())
    {
        match backend.filter(|_| segment.address >= map::MANAGED) {
            Some(backend) => load_managed(segment, backend)?,
            None => ram.write_slice(segment.data, GuestAddress(segment.address))?,
        }
    }
    Ok(())
}

fn load_managed(segment: &Segment<'_>, backend: &Arc<Backend>) -> Result<(), BootError> {
    let start = segment.address - map::MANAGED;
    let end = start + segment.data.len() as u64;
    let page = |number: u64| Page(number as u32);
    let pages = PageRange::new(page(start / PAGE_SIZE), page(end.div_ceil(PAGE_SIZE)));
    let pinned = backend.pin(pages)?;
    let offset = start % PAGE_SIZE;
    assert!(offset + segment.data.len() as u64 <= pinned.len());
    // SAFETY: the pinned pages are writable memory of the length just checked, which stays where it
    // is while the guard lives, and no vCPU or device runs yet that could use it meanwhile. The
    // segment's bytes are the VMM's own memory, so the two do not overlap.
    unsafe {
        ptr::copy_nonoverlapping(
            segment.data.as_ptr(),
            pinned.host().add(offset as usize),
            segment.data.len(),
        );
    }
    Ok(())
}

/// What the boot information says beyond the memory map's constants.
pub struct BootParameters<'a> {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Number of accelerators.
    pub devices: u32,
    /// Size of managed memory in bytes.
    pub managed: u64,
    /// The run's seed.
    pub seed: u64,
    /// Time-stamp counter frequency in kHz, 0 if unknown.
    pub tsc_khz: u32,
    /// `key=value` words.
    pub cmdline: &'a str,
}

/// Writes boot information and command line.
pub fn describe(ram: &GuestMemoryMmap, parameters: &BootParameters<'_>) -> Result<(), BootError> {
    let cmdline = parameters.cmdline.as_bytes();
    if cmdline.len() > CMDLINE_LIMIT {
        return Err(BootError::Cmdline { len: cmdline.len() });
    }
    let cmdline_address = map::BOOT_INFO + size_of::<BootInfo>() as u64;
    let info = Info(BootInfo {
        magic: boot::BOOT_MAGIC,
        version: BOOT_VERSION,
        vcpus: parameters.vcpus,
        devices: parameters.devices,
        reserved: 0,
        memory_base: map::MANAGED,
        memory_size: parameters.managed,
        control_base: map::CONTROL,
        serial_base: map::SERIAL,
        accel_base: map::ACCEL,
        accel_stride: map::ACCEL_STRIDE,
        irq_counters: map::IRQ_COUNTERS,
        seed: parameters.seed,
        tsc_khz: parameters.tsc_khz.into(),
        cmdline: cmdline_address,
        cmdline_len: cmdline.len() as u64,
    });
    ram.write_obj(info, GuestAddress(map::BOOT_INFO))?;
    ram.write_slice(cmdline, GuestAddress(cmdline_address))?;
    Ok(())
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Info(BootInfo);

// SAFETY: integers without padding (the interface crate asserts the size); every bit pattern is valid.
unsafe impl vm_memory::ByteValued for Info {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_has_a_limit() {
        let size = map::BOOT_RAM_SIZE as usize;
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap();
        let describe = |cmdline: &str| {
            describe(
                &ram,
                &BootParameters {
                    vcpus: 2,
                    devices: 1,
                    managed: 0,
                    seed: 7,
                    tsc_khz: 0,
                    cmdline,
                },
            )
        };
        describe(&"x".repeat(CMDLINE_LIMIT)).unwrap();
        let next: u64 = ram
            .read_obj(GuestAddress(map::BOOT_INFO + map::BOOT_INFO_SIZE))
            .unwrap();
        assert_eq!(next, 0);
        assert!(matches!(
            describe(&"x".repeat(CMDLINE_LIMIT + 1)),
            Err(BootError::Cmdline { .. })
        ));
    }
}
