//! A small guest: a program in ring 3 that knows its machine (docs/guest-abi.md).
//!
//! | module | what |
//! |---|---|
//! | `guest` | the machine, its devices and its vCPUs, as one of the two kinds of guests |
//! | `image` | its ELF file |
//! | `boot` | putting it into memory, and the boot information that it reads |
//! | `firmware`, `ring0`, `registers` | what lets a vCPU begin in ring 3 |
//! | `control` | the device by which it reports progress and ends the run |

pub mod boot;
pub mod control;
pub mod firmware;
mod guest;
pub mod image;
pub mod registers;
pub mod ring0;

pub use guest::Program;
