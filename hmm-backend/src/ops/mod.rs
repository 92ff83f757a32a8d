//! Operations that a user of the backend requests, besides faults: one verb a file.

mod detach;
mod free;
mod leave;
mod migrate;
mod pin;
mod poison;
mod progress;
mod protect;
mod resize;
pub mod snapshot;

pub(crate) use detach::detach;
pub(crate) use free::guest_freed;
pub(crate) use migrate::{migrate_to_device, migrate_to_system};
pub use pin::Pinned;
pub(crate) use poison::memory_failure;
pub use progress::Progress;
pub(crate) use protect::set_permission;
pub(crate) use resize::resize;
