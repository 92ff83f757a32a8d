//! The fault service: threads that read userfaultfd messages and serve them; and a function that serves one
//! fault, for replays.

mod by_call;
mod fault_service;
mod watchdog;
mod worker;

pub use crate::fault::{Fatal, FatalFault};
pub use crate::pages::error::{FatalCause, ServiceFailure};
pub(crate) use by_call::serve_by_call;
pub use fault_service::{FaultService, ServiceConfig};
