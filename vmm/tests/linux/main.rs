//! Booting: kernels of a few bytes of machine code, which even hosts that emulate a guest's kernel mode execute, and files that are no
//! kernels. Stock kernels boot in the nested lab.

mod bad_input;
mod kernel;
mod running;
#[path = "../common/signals.rs"]
mod signals;
mod terminal;
