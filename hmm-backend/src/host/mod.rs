//! The host: its limits, calls that it interrupts, events between threads, and text on its way to a terminal.

pub(crate) mod doorbell;
pub mod limits;
pub(crate) mod patience;
mod printable;

pub use printable::{printable, printable_lines};
