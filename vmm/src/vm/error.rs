//! Why a virtual machine could not be made.

use std::io;

use hmm_backend::limits::{Refusal, Resource};
use hmmvisor_abi::map;
use hmmvisor_devices::{AcceleratorError, NewDeviceError};
use thiserror::Error;

use crate::guest::GuestError;
use crate::machine::kvm_machine::MachineError;

/// Why a virtual machine could not be made.
#[derive(Debug, Error)]
pub enum VmError {
    /// The guest.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// KVM.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The fault service.
    #[error("starting the fault service: {0}")]
    Service(#[source] hmm_backend::Error),
    /// An accelerator.
    #[error(transparent)]
    Accelerator(#[from] AcceleratorError),
    /// A device of [`Managed::foreign`](super::Managed::foreign).
    #[error("making the device in window {index}: {error}")]
    Device {
        /// Its window.
        index: u32,
        /// The cause.
        #[source]
        error: NewDeviceError,
    },
    /// More devices than the memory map has windows for.
    #[error("{0} devices: there are windows for {max}", max = map::MAX_ACCELS)]
    TooManyDevices(usize),
    /// An event or a thread.
    #[error("making {what}: {error}")]
    System {
        /// What could not be made.
        what: &'static str,
        /// The system's answer.
        #[source]
        error: Refusal,
    },
}

impl VmError {
    /// Returns a function that makes an error of the system's answer to a request for an event or a thread.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> VmError {
        move |error| VmError::System {
            what,
            error: Refusal::new(Resource::Thread, error),
        }
    }
}
