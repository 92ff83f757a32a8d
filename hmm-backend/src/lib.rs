//! Heterogeneous memory below a guest: every page of a managed range lives in system memory or in the
//! memory of an emulated device, and moves between the two on access faults, under the control of a
//! device driver and a migration policy.
//!
//! The crate does not depend on KVM, virtio or a guest. Its caller gives it sizes, a policy and a driver for each
//! device:
//!
//! 1. [`Backend::new`] creates the managed memory and registers it with userfaultfd; CPUs reach it at
//!    [`Backend::host_memory`];
//! 2. [`Backend::attach`] adds a device: its memory and its [`driver::Driver`];
//! 3. [`Backend::start_service`] starts the threads that serve CPU faults;
//! 4. a device reaches the memory through a [`mirror::Mirror`];
//! 5. at the end, first stop the threads that access managed memory, then drop the mirrors and the
//!    [`service::FaultService`], which ends its threads.
//!
//! ```no_run
//! use std::sync::Arc;
//! use hmm_backend::{Backend, BackendConfig};
//! use hmm_backend::driver::DefaultDriver;
//! use hmm_backend::service::ServiceConfig;
//!
//! # fn main() -> Result<(), hmm_backend::Error> {
//! let backend = Backend::new(BackendConfig::new(64 << 20))?;
//! let device = backend.attach(16 << 20, Arc::new(DefaultDriver))?;
//! let service = backend.start_service(ServiceConfig::default(), |fault| eprintln!("{fault:?}"))?;
//! # Ok(()) }
//! ```
//!
//! | module | what is in it |
//! |---|---|
//! | the root | [`Backend`] and how it is made, [`Error`], [`Pinned`] pages, readers of events, [`ModelBackend`] for replays |
//! | [`driver`] | what the driver of a device implements, its rules, and the phases of a migration |
//! | [`mirror`] | how a device accesses memory, and its rules; [`mirror::Mirror::access`] has a device as its example |
//! | [`service`] | the threads that serve CPU faults, and faults that cannot be served |
//! | [`policy`] | what policies see and say, and those that are built in |
//! | [`pages`] | pages, ranges and sets of pages, devices, frames, accesses, places, hints |
//! | [`residency`] | where a page is |
//! | [`observe`] | counters, latencies, events |
//! | [`engine`] | how contents move, and what the kernel can do for that |
//! | [`links`] | what transfers cost and whether they take that time; what has crossed the links |
//! | [`snapshot`] | where pages are, one byte each |
//! | [`limits`], [`text`] | limits of the host; text from outside on its way to a terminal |
//! | [`testing`] | way-points of migrations, and injected answers of the kernel |
//!
//! `examples/process.rs` is a complete process with its own driver and device. `docs/driver-conformance.md` has a complete
//! driver with its test, and `docs/devices.md` says how a device with registers joins a virtual machine.

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
pub use backend::{
    Backend, BackendConfig, DeviceUsage, EVICTION_BATCH, EventReader, EventTap, ModelBackend,
};
pub use host::limits;
pub use ops::{Pinned, Progress, snapshot};
pub use pages::error::Error;
#[cfg(all(feature = "fuzzing", not(loom)))]
#[doc(hidden)]
pub use residency::script as residency_script;

pub mod driver {
    //! The contract of a device's driver: what it implements, and the phases of a migration that it is handed.
    //!
    //! The backend makes the same three promises as Linux's HMM, one level down: the driver controls the migration of its
    //! pages back to system memory ([`Driver::migrate_to_ram`]), owns a 64-bit word per device folio (the *cookie*), and is
    //! called when a device folio is no longer in use ([`Driver::page_free`]). Contents are moved by the backend, in
    //! [`ToDevice::copy`] and [`CopiedToSystem::commit`]; the driver decides, keeps its records and programs its hardware.
    //! From one device's private memory to another's, pages go directly ([`ToDevice::source`]), as Linux's drivers do with
    //! `MIGRATE_VMA_SELECT_DEVICE_PRIVATE`: after the source's driver was asked to [`Driver::flush`], under the locks of
    //! one migration, and with [`Driver::page_free`] of the source's folios at its end.
    //!
    //! The rules for a driver:
    //!
    //! * Calls come from any thread, several at once. The pages that migrate are locked until *finalize*, so two
    //!   migrations never have a page in common. [`Driver::page_free`] comes after the unlock: its pages may be migrating
    //!   again, into other frames. So keep records by cookie or frame, not by page.
    //! * [`Driver::page_free`] and [`Driver::folio_split`] are also called from inside the phases of the driver's own
    //!   migrations, on the same thread: hold no lock of the driver's across a phase. Pages that go directly to another device
    //!   bring these calls from inside that device's migration.
    //! * A driver's call neither touches managed memory nor faults through a mirror nor calls the backend: it could wait
    //!   for the pages that it has locked itself.
    //! * A cookie is 0 until [`ToDevice::set_cookies`] sets it. Each folio gets exactly one [`Driver::page_free`], each half
    //!   of a split folio one of its own.
    //! * A call that takes longer than [`crate::service::ServiceConfig`] allows is reported, and another service thread takes the
    //!   place of the one that waits. A driver that panics in a call of a service thread ends the service.

    pub use crate::migrate::{
        CommittedToDevice, CommittedToSystem, CopiedToDevice, CopiedToSystem, DefaultDriver,
        Driver, Finalized, ToDevice, ToSystem,
    };
    pub use crate::pages::error::{FaultError, MigrateError};
    pub use crate::pages::ids::DeviceFolio;
}

pub mod mirror {
    //! A device's access to managed memory: translations, faults, and what may be done with a page meanwhile.
    //!
    //! The device keeps its own translation table (a [`DeviceMmu`]), but the table lives *inside* the [`Mirror`], behind the
    //! lock that invalidation takes. So a device cannot break the rules of Linux's `mmu_interval_notifier` by mistake:
    //!
    //! * Entries are looked up and used only under a [`MirrorGuard`], and an invalidation returns only when no guard is held:
    //!   from then on the device does not use the old translations. A device that goes on working with a page by itself
    //!   finishes that work before it drops the guard.
    //! * New entries are made only by [`Mirror::fault`] and its siblings, which check under the same lock that no invalidation of
    //!   these pages came between finding and entering them. The migration that a fault on one page causes comes before the page
    //!   is found, so it never makes the fault repeat itself (in Linux, the owner of a notifier range serves this purpose). In
    //!   [`Mirror::fault_range`] a later page may evict an earlier one; after three such rounds its pages are used in place.
    //! * A fault needs the mirror mutably, so the device cannot take one while it holds a guard, which would deadlock against
    //!   the migration that the fault may cause.
    //!
    //! A device can tell more of its accesses than its faults ([`DeviceMmu::fidelity`]): the eviction policy of its memory decides by
    //! what it is told. With [`Fidelity::Bits`](crate::pages::Fidelity) the MMU keeps accessed and dirty bits, which the backend tests
    //! and clears; with `All` it keeps a list of its visits.
    //!
    //! [`DeviceMmu::invalidate`] and the two methods that take bits and visits run on any thread, also on the device's own during a fault, with pages locked: it changes
    //! the table and returns, without waiting and without calling the backend. A fault sleeps while its page is in motion, held or throttled; detaching the
    //! device ends it.

    pub use crate::fault::{
        DeviceMmu, HostPage, Mapping, Mirror, MirrorGuard, PageTable, RemoteCounters, Served,
        Target, TranslationTable,
    };
    pub use crate::pages::error::MirrorError;
}

/// The engines that move contents, and what this machine's kernel can do for them.
pub mod engine {
    pub use crate::memory::{
        Engine, EngineChoice, MoveProbe, UffdSupport, probe_moves, probe_userfaultfd,
    };
}

/// The links between system memory and devices: what transfers cost, and what has crossed them.
pub mod links {
    pub use crate::migrate::{LinkTraffic, Pacing, Route};
    pub use crate::policy::{LinkMatrix, LinkModel};
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
