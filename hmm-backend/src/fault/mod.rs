//! Serves faults of CPUs and devices, as the policy decides.

mod advise;
mod advisor;
mod cpu;
mod device;
mod evict;
mod fatal;
mod faults;
mod mirror;
mod pause;
mod prefetch;
mod prefetch_queue;
mod queue;
mod remote;
mod retry;
mod stale;
mod table;

pub(crate) use cpu::CpuFaults;
pub(crate) use evict::BATCH as EVICTION_BATCH;
pub use fatal::FatalFault;
pub(crate) use faults::{FaultConfig, Faults};
pub use mirror::{DeviceMmu, HostPage, Mapping, Mirror, MirrorGuard, Target};
pub(crate) use prefetch_queue::Prefetch;
pub(crate) use queue::{Deferred, Fault, sort_and_deduplicate};
pub use remote::RemoteCounters;
pub(crate) use retry::{Attempts, Unresolved};
pub use table::{PageTable, TranslationTable};
