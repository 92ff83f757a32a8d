//! Hmmvisor's embedded guest: its ELF image and the catalogue of the workloads in it.
//!
//! The guest itself is the freestanding program in `guest/`, a workspace of its own, which this
//! crate's build script compiles.

pub mod catalog;
mod cmdline;

pub use catalog::{Kind, Param, Workload};
pub use cmdline::{CatalogError, find, workloads};

/// The guest: a static x86-64 ELF file, linked at [`hmmvisor_abi::map::IMAGE_BASE`].
pub static IMAGE: &[u8] = include_bytes!(env!("HMMVISOR_GUEST_IMAGE"));
