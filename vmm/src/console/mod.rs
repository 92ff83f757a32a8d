//! The guest's serial port, and where its output and input go on the host.
//!
//! | module | what |
//! |---|---|
//! | `serial` | the serial port as the guest sees it |
//! | `thread` | the thread that brings an operating system's input |
//! | `terminal` | the terminal's mode |

pub mod serial;
pub mod terminal;
pub mod thread;
