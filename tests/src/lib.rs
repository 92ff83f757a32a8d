//! A test kit for heterogeneous guest memory: virtual machines whose vCPUs do what a test tells them, with devices
//! whose drivers can be stopped or made to fail at each way-point of a migration. So a test drives a guest's fault and
//! looks at its effect, step by step. Everything runs on real KVM and real userfaultfd.
//!
//! ```
//! use hmmvisor_testkit::{FaultError, GuestError, Residency, TestVm, WayPoint, each_engine};
//!
//! # fn main() -> Result<(), GuestError> {
//! each_engine(|engine| {
//!     // Two vCPUs, 2 MiB of managed memory, a device with 16 pages of its own.
//!     let vm = TestVm::builder().engine(engine).scripted(16).start();
//!     vm.vcpu(0).write(3, 42).wait()?;
//!     vm.to_device(0, 3);
//!     assert!(vm.device(0).holds(3));
//!
//!     // The driver is busy twice, then stops in the middle of giving the page back.
//!     vm.device(0).fail(WayPoint::ToSystemEntry, 2, FaultError::Retry);
//!     let gate = vm.device(0).hold(WayPoint::ToSystemAfterCopy);
//!     let read = vm.vcpu(1).read(3);
//!     gate.wait_arrived();
//!     assert!(!read.is_done());
//!     gate.release();
//!
//!     assert_eq!(read.wait()?, 42);
//!     assert_eq!(vm.residency(3), Residency::System);
//!     vm.wait_for(|stats| stats.counters.faults_retried == 2);
//!     Ok(())
//! })
//! # }
//! ```
//!
//! | what | where |
//! |---|---|
//! | a machine and how to wait for it | [`TestVm`], [`Builder`] |
//! | what a vCPU can be told to do, and its answer | [`Vcpu`], [`Pending`], [`Adding`], [`GuestError`] |
//! | a device's own accesses, holding its driver, making it fail, unplugging it | [`Device`], [`Gate`], [`WayPoint`], [`Arrival`] |
//! | migrations and the like on another thread | [`Task`] |
//! | both engines | [`ENGINES`], [`each_engine`], [`machine::both_engines`] |
//! | a driver that checks the contract | [`CheckedDriver`] |
//! | machines with a real workload or a guest of a few instructions | [`Setup`], [`Machine`], [`Asm`] |
//! | an accelerator without a guest | [`accelerator::Rig`] |
//! | a virtio device without a guest | [`virtio::Rig`] |
//! | hangs, leaks, random choices that repeat | [`Watchdog`], [`Resources`], [`Random`] |
//!
//! Types of [`hmm_backend`] that tests often need are exported here again. `docs/testing.md` has ten examples.

pub mod accelerator;
pub mod asm;
mod builder;
pub mod conformance;
mod device;
mod doorbell;
pub mod driver;
pub mod elf;
mod engines;
mod error;
pub mod inject;
pub mod machine;
mod patience;
mod pending;
mod place;
pub mod process;
pub mod random;
mod state;
mod vcpu;
pub mod virtio;
mod vm;
pub mod watchdog;

pub use asm::{Asm, Reg};
pub use builder::Builder;
pub use conformance::AccessRefused;
pub use device::{Device, Gate};
pub use elf::{Segment, elf};
pub use engines::{ENGINES, Engines};
pub use error::GuestError;
pub use hmm_backend::testing::CheckedDriver;
pub use inject::{Arrival, WayPoint};
pub use machine::{Machine, Output, Setup, each_engine, word};
pub use patience::patient;
pub use pending::{Pending, Task};
pub use place::{Pages, Word, address, pages};
pub use process::Resources;
pub use random::Random;
pub use vcpu::{Adding, Vcpu};
pub use vm::TestVm;
pub use watchdog::Watchdog;

pub use hmm_backend::driver::{DeviceFolio, Driver, FaultError};
pub use hmm_backend::engine::Engine;
pub use hmm_backend::observe::{Cause, Event, EventKind, Stats};
pub use hmm_backend::pages::{Page, PageRange};
pub use hmm_backend::residency::Residency;
pub use hmm_backend::snapshot;
pub use hmmvisor::{End, Failure};
pub use hmmvisor_abi::accel;
pub use hmmvisor_abi::agent::checksum;
pub use hmmvisor_policies::ScriptFigures;
