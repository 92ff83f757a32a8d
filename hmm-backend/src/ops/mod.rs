//! What a user of the backend asks for besides faults: one verb a file.

mod free;
mod migrate;
mod pin;
mod poison;
mod protect;
pub mod snapshot;

pub use pin::Pinned;
