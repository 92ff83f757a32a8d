//! Host limits, retries of interrupted calls, wake-ups between threads, and text made safe for a terminal.

pub(crate) mod doorbell;
mod exact_sleep;
pub mod limits;
pub(crate) mod patience;
mod printable;

pub(crate) use exact_sleep::sleep_exactly;
pub use printable::{printable, printable_lines};
