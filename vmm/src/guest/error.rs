//! Why a guest could not be put into a machine.

use std::io;

use hmm_backend::limits::{Refusal, Resource};
use thiserror::Error;

use super::linux::LoadError;
use super::program::boot::BootError;
use super::program::image::ImageError;
use crate::machine::kvm_machine::MachineError;

/// Why a guest could not be put into a machine.
#[derive(Debug, Error)]
pub enum GuestError {
    /// A program's image.
    #[error("loading the guest: {0}")]
    Image(#[from] ImageError),
    /// Writing a program into memory.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A kernel, its ramdisk or its command line.
    #[error(transparent)]
    Linux(#[from] LoadError),
    /// An operating system without the memory for it.
    #[error("booting a kernel: it needs managed memory")]
    NoMemory,
    /// KVM.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// An event for a device.
    #[error("making {what}: {error}")]
    Event {
        /// The event.
        what: &'static str,
        /// The system's answer.
        #[source]
        error: Refusal,
    },
}

impl GuestError {
    /// Returns a function that makes an error of the system's answer to a request for an event.
    pub(crate) fn event(what: &'static str) -> impl FnOnce(io::Error) -> GuestError {
        move |error| GuestError::Event {
            what,
            error: Refusal::new(Resource::Thread, error),
        }
    }
}
