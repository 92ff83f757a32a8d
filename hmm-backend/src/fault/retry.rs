//! Why faults are not resolved yet, and when and how often they are tried again.

use std::time::Duration;

use crate::memory::EngineError;
use crate::pages::{FatalCause, FaultError};

/// Why a fault is not resolved yet. The caller must try again or report it: no other thread wakes the CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unresolved {
    /// The page is held or the policy throttles: serve it after this time.
    Wait(Duration),
    /// The page could not be moved now.
    Retry,
    /// The host has no memory for it now.
    OutOfMemory,
    /// The fault can never be resolved.
    Fatal(FatalCause),
}

impl From<FaultError> for Unresolved {
    fn from(error: FaultError) -> Self {
        match error {
            FaultError::Retry => Unresolved::Retry,
            FaultError::OutOfMemory => Unresolved::OutOfMemory,
            FaultError::Fatal(cause) => Unresolved::Fatal(FatalCause::DriverFailed(cause)),
        }
    }
}

impl From<EngineError> for Unresolved {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Busy => Unresolved::Retry,
            EngineError::NoMemory => Unresolved::OutOfMemory,
            EngineError::InTheWay | EngineError::Lost | EngineError::Unexpected(_) => {
                Unresolved::Fatal(FatalCause::Host(error.to_string()))
            }
        }
    }
}

/// Counts how often a fault was tried: it becomes fatal after a limit.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Attempts(u32);

/// With waits that double up to 20 ms, these attempts take about a second.
const MAX_ATTEMPTS: u32 = 60;

impl Attempts {
    /// Counts an attempt and returns how long to wait before the next one, or the cause if there must be none.
    pub(crate) fn next(&mut self, unresolved: &Unresolved) -> Result<Duration, FatalCause> {
        let gave_up = match unresolved {
            // A wait for a hold or a throttle is no failed attempt.
            Unresolved::Wait(time) => return Ok(*time),
            Unresolved::Fatal(cause) => return Err(cause.clone()),
            Unresolved::Retry => FatalCause::Busy {
                attempts: MAX_ATTEMPTS,
            },
            Unresolved::OutOfMemory => FatalCause::OutOfMemory {
                attempts: MAX_ATTEMPTS,
            },
        };
        self.0 += 1;
        if self.0 > MAX_ATTEMPTS {
            return Err(gave_up);
        }
        Ok(Duration::from_micros(20 << self.0.min(10)))
    }
}
