//! Heterogeneous memory below a guest: every page of a managed range lives in system memory or in the
//! memory of an emulated device, and moves between the two on access faults, under the control of a
//! device driver and a migration policy.
//!
//! The crate knows no KVM, no virtio and no guest. A user gives it nothing but sizes:
//!
//! 1. [`Backend::new`] makes the managed memory and registers it with userfaultfd;
//! 2. [`Backend::attach`] adds a device: its memory and its [`Driver`];
//! 3. [`Backend::start_service`] starts the threads that serve CPU faults;
//! 4. a device reaches the memory through a [`Mirror`].
//!
//! ```no_run
//! use std::sync::Arc;
//! use hmm_backend::{Backend, BackendConfig, DeviceFolio, Driver, ServiceConfig};
//!
//! /// A device that leaves everything to the defaults.
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
//! `examples/process.rs` is a whole process with a driver and a device of its own.

mod advisor;
mod backend;
mod buddy;
mod device;
mod doorbell;
mod driver;
mod driver_calls;
mod duplicate;
mod engine;
mod error;
mod events;
mod evict;
mod exclusive;
mod explicit;
mod fatal;
mod fault;
mod fault_queue;
mod find;
mod folio_lock;
mod free;
pub mod limits;
mod link;
mod mapping;
#[cfg(feature = "measure")]
#[doc(hidden)]
pub mod measure;
mod memory;
mod migrate;
mod mirror;
mod model;
mod page;
mod patience;
mod pause;
mod permission;
mod pin;
mod poison;
mod policy;
mod printable;
#[cfg(all(test, not(loom)))]
mod properties;
mod residency;
#[cfg(all(test, loom))]
mod residency_model;
#[cfg(all(any(test, feature = "fuzzing"), not(loom)))]
#[doc(hidden)]
pub mod residency_script;
mod service;
mod service_watch;
pub mod snapshot;
mod stale;
mod stats;
mod sync;
mod time;
mod uffd;
mod unresolved;
mod wait;
mod wishes;
mod word;

pub use backend::{Backend, BackendConfig};
pub use driver::{DeviceFolio, DeviceId, Driver, Frame};
pub use engine::{Engine, EngineChoice};
pub use error::{Error, FaultError, MigrateError, MirrorError};
pub use events::{Event, EventKind, Events};
pub use fatal::{FatalCause, FatalFault};
pub use link::LinkModel;
pub use memory::{KernelAnswers, KernelCall, MadeUpAnswer, MoveProbe, probe_moves};
pub use migrate::{
    CommittedToDevice, CommittedToSystem, CopiedToDevice, CopiedToSystem, Finalized, Step,
    ToDevice, ToSystem, Watch,
};
pub use mirror::{DeviceMmu, HostPage, Mapping, Mirror, MirrorGuard, RemoteCounters, Target};
pub use model::ModelBackend;
pub use page::{BLOCK_PAGES, Block, MAX_ORDER, PAGE_SIZE, Page, PageRange, PageSet};
pub use pin::Pinned;
pub use policy::{
    Accepts, Access, AccessCounter, Advice, BlockFault, BlockView, ByMigration, Clock, Density,
    EvictionPolicy, FaultPolicy, Fifo, FirstTouch, Hint, Lfu, Lru, OnDemand, Place, PlacementError,
    PolicyError, PolicyFactory, PolicyFile, PolicyInfo, PolicyParam, PolicySpec, Recent, S3Fifo,
    Seen, Sequential, Wish, policies, policy_checksum,
};
pub use printable::{printable, printable_lines};
pub use service::{FaultService, ServiceConfig};
pub use stats::{Cause, Latency, Stats};
pub use time::MAX_HOLD;
pub use uffd::{UffdSupport, probe_userfaultfd};
pub use word::{Residency, Word};
