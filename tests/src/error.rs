//! How a guest's command fails.

use hmmvisor::{End, Failure};

/// Why a vCPU did not do what a test told it to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestError {
    /// The whole run ended while the command was outstanding.
    #[error("the run ended: {0:?}")]
    Ended(End),
    /// The contents of the page are lost: the guest got an error instead of data.
    #[error("the contents of page {page:#x} are lost")]
    Lost {
        /// The page.
        page: u32,
    },
    /// The page is read-only for vCPUs.
    #[error("page {page:#x} is read-only")]
    Permission {
        /// The page.
        page: u32,
    },
    /// A word is not what it should be.
    #[error("page {page:#x}, word {index}: {found:#x} instead of {expected:#x}")]
    WrongData {
        /// The page.
        page: u32,
        /// Which of its words.
        index: u32,
        /// What it should be.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// The accelerator's command failed.
    #[error("the accelerator's command failed with status {status}, address or index {address:#x}")]
    Accelerator {
        /// `STATUS_*` of [`crate::accel`].
        status: u32,
        /// The address or index that it is about.
        address: u64,
    },
    /// The accelerator was stopped before.
    #[error("the accelerator is stopped")]
    Disabled,
    /// The agent does not know the command, or not with these arguments; or the backend refused it.
    #[error("the guest refused the command")]
    Refused,
}

impl GuestError {
    /// The page that the error is about, if it is about one.
    pub fn page(&self) -> Option<u32> {
        match *self {
            GuestError::Lost { page }
            | GuestError::Permission { page }
            | GuestError::WrongData { page, .. }
            | GuestError::Ended(End::Failed(Failure::Page { page, .. })) => Some(page),
            _ => None,
        }
    }
}
