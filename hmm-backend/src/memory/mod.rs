//! Guest memory and device memory, and the engines that move contents between them.
//!
//! * `remap` moves the pages themselves with `UFFDIO_MOVE`: no copy, and atomic for all CPUs.
//! * `copy` keeps device memory separate and copies. If the kernel has `UFFDIO_MOVE`, guest pages are moved out
//!   before they are copied, and are reused to carry contents back (`engine/recycle.rs`). Otherwise they are copied under
//!   write protection and dropped, and contents come back with `UFFDIO_COPY`.
//!
//! Both offer the same steps, so that the code of migrations does not depend on the engine. The caller of each step
//! holds the locks of the pages.

mod buddy;
mod engine;
mod frames;
mod guest;
mod guest_pages;
mod host_failure;
mod kernel;
mod mmap;
mod ordered_set;
mod presence;
mod probe;
mod ranged;
mod run;
mod uffd;

pub(crate) use buddy::Buddy;
pub use engine::{Engine, EngineChoice};
pub(crate) use frames::DeviceMemory;
pub(crate) use guest::{GuestConfig, GuestMemory};
pub(crate) use host_failure::HostFailures;
pub use kernel::{KernelAnswers, KernelCall, MadeUpAnswer};
pub(crate) use presence::Presence;
pub use probe::{MoveProbe, probe_moves};
pub(crate) use ranged::EngineError;
pub(crate) use run::{Fill, Passage, Reach, Run};
pub(crate) use uffd::{BATCH, FaultMessage, Uffd};
pub use uffd::{UffdSupport, probe_userfaultfd};
