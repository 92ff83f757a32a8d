//! Host limits, retries of interrupted calls, wake-ups between threads, and text made safe for a terminal.

pub(crate) mod doorbell;
pub mod limits;
pub(crate) mod patience;
mod printable;

pub use printable::{printable, printable_lines};
