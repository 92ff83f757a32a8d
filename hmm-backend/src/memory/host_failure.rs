//! Calls that the host refused although the backend cannot continue without them.

use std::fmt;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

/// A failed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostFailure {
    /// The call and its purpose.
    call: &'static str,
    error: String,
}

impl fmt::Display for HostFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, self.error)
    }
}

/// Keeps the first failure. A thread that needs the failed call may wait for ever, so the fault service reports the
/// failure ([`crate::service::ServiceFailure::HostFailed`]) and the user ends the run.
#[derive(Debug, Default)]
pub(crate) struct HostFailures {
    first: OnceLock<HostFailure>,
    reported: AtomicBool,
}

impl HostFailures {
    /// Notes that this call failed with this error.
    pub(crate) fn note(&self, call: &'static str, error: &io::Error) {
        // Only the first failure is kept, because it ends the service.
        let _ = self.first.set(HostFailure {
            call,
            error: error.to_string(),
        });
    }

    /// Returns the first failure, once: later calls return `None`.
    pub(crate) fn unreported(&self) -> Option<&HostFailure> {
        let first = self.first.get()?;
        (!self.reported.swap(true, Relaxed)).then_some(first)
    }
}
