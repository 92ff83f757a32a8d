//! Heterogeneous memory below a guest: every page of a managed range lives in system memory or in the
//! memory of an emulated device, and moves between the two on access faults, under the control of a
//! device driver and a migration policy.
//!
//! The crate does not depend on KVM, virtio or a guest. Its caller gives it only sizes:
//!
//! 1. [`Backend::new`] creates the managed memory and registers it with userfaultfd;
//! 2. [`Backend::attach`] adds a device: its memory and its [`driver::Driver`];
//! 3. [`Backend::start_service`] starts the threads that serve CPU faults;
//! 4. a device reaches the memory through a [`mirror::Mirror`].
//!
//! ```no_run
//! use std::sync::Arc;
//! use hmm_backend::{Backend, BackendConfig};
//! use hmm_backend::driver::{DeviceFolio, Driver};
//! use hmm_backend::service::ServiceConfig;
//!
//! /// A driver that only uses the defaults.
//! struct Plain;
//! impl Driver for Plain {
//!     fn page_free(&self, _: DeviceFolio) {}
//! }
//!
//! # fn main() -> Result<(), hmm_backend::Error> {
//! let backend = Backend::new(BackendConfig::new(64 << 20))?;
//! let device = backend.attach(16 << 20, Arc::new(Plain))?;
//! let service = backend.start_service(ServiceConfig::default(), |fault| eprintln!("{fault:?}"))?;
//! # Ok(()) }
//! ```
//!
//! | module | what is in it |
//! |---|---|
//! | the root | [`Backend`] and how it is made, [`Error`], [`ModelBackend`] for replays |
//! | [`driver`] | what the driver of a device implements, and the phases of a migration |
//! | [`mirror`] | how a device accesses memory; [`mirror::Mirror::access`] has a device as its example |
//! | [`service`] | the threads that serve CPU faults, and faults that cannot be served |
//! | [`policy`] | what policies see and say, and those that are built in |
//! | [`pages`] | pages, ranges and sets of pages, devices, frames, accesses, places, hints |
//! | [`residency`] | where a page is |
//! | [`observe`] | counters, latencies, events |
//! | [`engine`] | how contents move, and what the kernel can do for that |
//! | [`snapshot`] | where pages are, one byte each |
//! | [`limits`], [`text`] | limits of the host; text from outside on its way to a terminal |
//! | [`testing`] | way-points of migrations, and injected answers of the kernel |
//!
//! `examples/process.rs` is a complete process with its own driver and device.

mod backend;
mod fault;
mod host;
mod memory;
mod migrate;
pub mod observe;
mod ops;
pub mod pages;
pub mod policy;
pub mod residency;
pub mod service;

#[cfg(feature = "measure")]
#[doc(hidden)]
pub use backend::measure;
pub use backend::{Backend, BackendConfig, ModelBackend};
pub use host::limits;
pub use ops::{Pinned, snapshot};
pub use pages::error::Error;
#[cfg(all(feature = "fuzzing", not(loom)))]
#[doc(hidden)]
pub use residency::script as residency_script;

/// The contract of a device's driver: what it implements, and the phases of a migration that it is handed.
pub mod driver {
    pub use crate::migrate::{
        CommittedToDevice, CommittedToSystem, CopiedToDevice, CopiedToSystem, DefaultDriver,
        Driver, Finalized, ToDevice, ToSystem,
    };
    pub use crate::pages::error::{FaultError, MigrateError};
    pub use crate::pages::ids::DeviceFolio;
}

/// A device's access to managed memory: translations, faults, and what may be done with a page meanwhile.
pub mod mirror {
    pub use crate::fault::{
        DeviceMmu, HostPage, Mapping, Mirror, MirrorGuard, PageTable, RemoteCounters, Target,
        TranslationTable,
    };
    pub use crate::pages::error::MirrorError;
}

/// The engines that move contents, and what this machine's kernel can do for them.
pub mod engine {
    pub use crate::memory::{
        Engine, EngineChoice, MoveProbe, UffdSupport, probe_moves, probe_userfaultfd,
    };
}

/// For tests: a driver that checks the contract, looking at migrations between their phases, and answers that a kernel
/// gives only now and then.
pub mod testing {
    pub use crate::memory::{KernelAnswers, KernelCall, MadeUpAnswer};
    pub use crate::migrate::{CheckedDriver, Failing, Step, Watch};
}

/// Text from outside on its way to a terminal or a log.
pub mod text {
    pub use crate::host::{printable, printable_lines};
}
