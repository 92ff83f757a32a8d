//! The fault service: threads that read userfaultfd messages and serve them; and the same by call, for replays.

mod model;
mod watchdog;
mod worker;

pub use model::ModelBackend;
pub use worker::{FaultService, ServiceConfig};
