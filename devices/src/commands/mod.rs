//! The commands of an accelerator: decoded, checked, computed. Pure: over any [`memory::Memory`].
//!
//! | module | what |
//! |---|---|
//! | `command` | decoding and validation |
//! | `kernels` | what the commands compute |
//! | `managed` | the addresses that commands may name |
//! | `memory` | what kernels read and write |
//! | `queue` | the ring that commands come by |
//! | `guest_hint` | hints of guests |
//! | `error` | why a command fails |

pub mod command;
pub mod error;
pub mod guest_hint;
pub mod kernels;
pub mod managed;
pub mod memory;
pub mod queue;
