//! Serves faults of CPUs and devices, as the policy decides.

mod accesses;
mod advice;
mod cpu;
mod device;
mod evict;
mod fatal;
mod faults;
mod mirror;
mod pause;
mod queue;
mod retry;
mod stale;

pub(crate) use advice::Prefetch;
pub(crate) use cpu::CpuFaults;
pub use device::Served;
pub use fatal::{Fatal, FatalFault};
pub(crate) use faults::{FaultConfig, Faults};
pub use mirror::{
    DeviceMmu, HostPage, Mapping, Mirror, MirrorGuard, PageTable, RemoteCounters, Target,
    TranslationTable,
};
pub(crate) use queue::{Deferred, Fault, History, sort_and_deduplicate};
pub(crate) use retry::{Attempts, Unresolved};
