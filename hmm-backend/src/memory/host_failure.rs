//! Calls that the host refused although the backend cannot do without them.

use std::fmt;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

/// A failed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostFailure {
    /// The call and what it was to do.
    call: &'static str,
    error: String,
}

impl fmt::Display for HostFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, self.error)
    }
}

/// The first failure. What waits for the failed call may wait for ever, so the fault service reports it
/// ([`crate::FatalCause::HostFailed`]) and the user ends the run.
#[derive(Debug, Default)]
pub(crate) struct HostFailures {
    first: OnceLock<HostFailure>,
    reported: AtomicBool,
}

impl HostFailures {
    /// Notes that the host failed this call.
    pub(crate) fn note(&self, call: &'static str, error: &io::Error) {
        // Later ones add nothing: the first ends the service.
        let _ = self.first.set(HostFailure {
            call,
            error: error.to_string(),
        });
    }

    /// The first failure, unless this was asked before.
    pub(crate) fn unreported(&self) -> Option<&HostFailure> {
        let first = self.first.get()?;
        (!self.reported.swap(true, Relaxed)).then_some(first)
    }
}
