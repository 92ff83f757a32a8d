//! A test kit for heterogeneous guest memory.

pub mod accelerator;
pub mod asm;
mod device;
mod doorbell;
pub mod driver;
pub mod elf;
mod error;
pub mod inject;
pub mod machine;
mod pending;
mod place;
pub mod process;
pub mod random;
mod vcpu;
mod vm;
pub mod watchdog;

pub use asm::{Asm, Reg};
pub use device::{Device, Gate};
pub use driver::ScriptedDriver;
pub use elf::{Segment, elf};
pub use error::GuestError;
pub use inject::{Arrival, WayPoint};
pub use machine::{ENGINES, Machine, Output, Setup, each_engine, word};
pub use pending::{Pending, Task};
pub use place::{Pages, Word, address, pages};
pub use process::Resources;
pub use random::Random;
pub use vcpu::{Adding, Vcpu};
pub use vm::{Builder, TestVm};
pub use watchdog::Watchdog;

pub use hmm_backend::{
    Cause, Driver, Engine, Event, EventKind, FaultError, Page, PageRange, Residency, Stats,
    snapshot,
};
pub use hmmvisor_abi::accel;
pub use hmmvisor_abi::agent::checksum;
