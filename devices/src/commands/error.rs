//! How commands fail.

use hmmvisor_abi::accel;

/// Why a command failed: what its completion says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommandError {
    /// No such opcode.
    #[error("unknown opcode")]
    Opcode,
    /// An argument is misaligned or out of its range.
    #[error("bad argument")]
    Argument,
    /// This address is not in managed memory.
    #[error("address {0:#x} is not in managed memory")]
    Address(u64),
    /// The device fault on this address could not be resolved.
    #[error("device fault on {0:#x} could not be resolved")]
    Fault(u64),
    /// The page does not permit the access.
    #[error("access to {0:#x} not permitted")]
    Permission(u64),
    /// This index, read from memory, is out of range.
    #[error("index {0} out of range")]
    Index(u64),
    /// The device was stopped.
    #[error("device stopped")]
    Aborted,
}

impl CommandError {
    /// The completion's `STATUS_*`.
    pub fn status(&self) -> u32 {
        match self {
            CommandError::Opcode => accel::STATUS_OPCODE,
            CommandError::Argument => accel::STATUS_ARGUMENT,
            CommandError::Address(_) => accel::STATUS_ADDRESS,
            CommandError::Fault(_) => accel::STATUS_FAULT,
            CommandError::Permission(_) => accel::STATUS_PERMISSION,
            CommandError::Index(_) => accel::STATUS_INDEX,
            CommandError::Aborted => accel::STATUS_ABORTED,
        }
    }

    /// The completion's offending address or index.
    pub fn address(&self) -> u64 {
        match *self {
            CommandError::Address(it)
            | CommandError::Fault(it)
            | CommandError::Permission(it)
            | CommandError::Index(it) => it,
            CommandError::Opcode | CommandError::Argument | CommandError::Aborted => 0,
        }
    }
}
