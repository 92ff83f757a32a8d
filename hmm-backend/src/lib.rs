//! Heterogeneous memory below a guest: every page of a managed range lives in system memory or in the
//! memory of an emulated device, and moves between the two on access faults, under the control of a
//! device driver and a migration policy.
//!
//! The crate does not depend on KVM, virtio or a guest. Its caller gives it only sizes:
//!
//! 1. [`Backend::new`] creates the managed memory and registers it with userfaultfd;
//! 2. [`Backend::attach`] adds a device: its memory and its [`Driver`];
//! 3. [`Backend::start_service`] starts the threads that serve CPU faults;
//! 4. a device reaches the memory through a [`Mirror`].
//!
//! ```no_run
//! use std::sync::Arc;
//! use hmm_backend::{Backend, BackendConfig, DeviceFolio, Driver, ServiceConfig};
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
//! `examples/process.rs` is a complete process with its own driver and device.

mod backend;
mod fault;
mod host;
mod memory;
mod migrate;
mod observe;
mod ops;
mod pages;
mod policy;
mod residency;
mod service;

#[cfg(feature = "measure")]
#[doc(hidden)]
pub use backend::measure;
pub use backend::{Backend, BackendConfig, ModelBackend};
pub use fault::{
    DeviceMmu, FatalFault, HostPage, Mapping, Mirror, MirrorGuard, PageTable, RemoteCounters,
    Target, TranslationTable,
};
pub use host::{limits, printable, printable_lines};
pub use memory::{
    Engine, EngineChoice, KernelAnswers, KernelCall, MadeUpAnswer, MoveProbe, UffdSupport,
    probe_moves, probe_userfaultfd,
};
pub use migrate::{
    CommittedToDevice, CommittedToSystem, CopiedToDevice, CopiedToSystem, Driver, Finalized, Step,
    ToDevice, ToSystem, Watch,
};
pub use observe::{Cause, Event, EventKind, Events, Latency, Stats};
pub use ops::{Pinned, snapshot};
pub use pages::time::MAX_HOLD;
pub use pages::{
    Access, BLOCK_PAGES, Block, DeviceFolio, DeviceId, Error, FatalCause, FaultError, Frame, Hint,
    MAX_ORDER, MigrateError, MirrorError, PAGE_SIZE, Page, PageRange, PageSet, Place,
};
pub use policy::{
    Accepts, AccessCounter, Advice, BlockFault, BlockView, ByMigration, Clock, Density,
    EvictionPolicy, FaultPolicy, Fifo, FirstTouch, Lfu, LinkModel, Lru, OnDemand, PlacementError,
    PolicyError, PolicyFactory, PolicyFile, PolicyInfo, PolicyParam, PolicySpec, Recent, S3Fifo,
    Seen, Sequential, Wish, policies, policy_checksum,
};
#[cfg(all(feature = "fuzzing", not(loom)))]
#[doc(hidden)]
pub use residency::script as residency_script;
pub use residency::{Placed, Residency, Word};
pub use service::{FaultService, ServiceConfig};
