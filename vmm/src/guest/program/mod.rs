//! A small guest: a program in ring 3 that knows its machine (docs/guest-abi.md).
//!
//! | module | what |
//! |---|---|
//! | `image` | its ELF file |
//! | `boot` | putting it into memory, and the boot information that it reads |
//! | `firmware`, `ring0`, `registers` | what lets a vCPU begin in ring 3 |
//! | `control` | the device by which it reports progress and ends the run |

pub mod boot;
pub mod control;
pub mod firmware;
pub mod image;
pub mod registers;
pub mod ring0;
