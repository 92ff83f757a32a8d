//! Checks that a [`Driver`](hmm_backend::driver::Driver) keeps its side of the contract: one report line for each rule that a
//! driver can break and each engine, on real userfaultfd, without a virtual machine.
//!
//! ```no_run
//! use hmm_backend::driver::{DeviceFolio, Driver};
//! use hmmvisor_testkit::conformance;
//!
//! struct MyDriver;
//! impl Driver for MyDriver {
//!     fn page_free(&self, _: DeviceFolio) {}
//! }
//!
//! let report = conformance::run(|| MyDriver);
//! println!("{report}");
//! report.assert_passed();
//! ```
//!
//! A driver that keeps books, or has a device that reads and writes memory, is checked more closely as a [`Subject`].
//! `docs/driver-conformance.md` has the table of rules.

mod bench;
mod device;
mod obstacles;
mod report;
mod rules;
mod run;
mod subject;
mod witness;

pub use device::{AccessRefused, DeviceAccess, MirrorDevice};
pub use report::{Evidence, Outcome, Report, Verdict};
pub use rules::{RULES, Rule};
pub use run::{Suite, run, run_subject};
pub use subject::{Plain, Subject};

/// Pages of managed memory that the rules run on.
pub const PAGES: u32 = 1024;
/// The last pages are the subject's own, for queues and the like: no rule touches them.
pub const OWN_PAGES: u32 = 16;
