//! Faults of CPUs and devices, and what a policy makes of them.

pub(crate) mod advisor;
mod cpu;
mod device;
pub(crate) mod evict;
pub(crate) mod fatal;
pub(crate) mod mirror;
pub(crate) mod pause;
pub(crate) mod queue;
mod remote;
pub(crate) mod retry;
mod stale;
pub(crate) mod wishes;

pub use fatal::FatalFault;
pub use mirror::{DeviceMmu, HostPage, Mapping, Mirror, MirrorGuard, Target};
pub use remote::RemoteCounters;
