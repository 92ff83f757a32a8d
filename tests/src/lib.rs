//! What the integration tests share: machines under test, guests of a few instructions, a driver that fails as
//! told, and watchers for what a test must not do, such as hang or leave something behind.
//!
//! Everything runs on real KVM and real userfaultfd.

pub mod accelerator;
pub mod asm;
pub mod driver;
pub mod elf;
pub mod machine;
pub mod process;
pub mod random;
pub mod watchdog;

pub use asm::{Asm, Reg};
pub use driver::ScriptedDriver;
pub use elf::{Segment, elf};
pub use machine::{ENGINES, Machine, Output, Setup, word};
pub use process::Resources;
pub use random::Random;
pub use watchdog::Watchdog;

use hmm_backend::{Page, PageRange};

/// The pages `start..end`.
pub fn pages(range: std::ops::Range<u32>) -> PageRange {
    PageRange::new(Page(range.start), Page(range.end))
}
