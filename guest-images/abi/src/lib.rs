//! The binary interface between Hmmvisor and its guests.
//!
//! One `no_std` crate without dependencies, used by the VMM, by the accelerator model and by the
//! freestanding guest, so that the three cannot disagree. The prose is in `docs/guest-abi.md` and
//! `docs/devices.md`; everything here is little-endian and stable within [`BOOT_VERSION`].
#![no_std]

pub mod accel;
pub mod agent;
pub mod boot;
pub mod control;
pub mod map;
pub mod memory_error;

pub use boot::BOOT_VERSION;
pub use boot::BootInfo;
pub use memory_error::MemoryError;
