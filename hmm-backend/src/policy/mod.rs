//! Policies: *what* to migrate, prefetch, hold or evict, never *how*.
//!
//! A policy sees numbers and returns advice. It has no file descriptors, threads or clock, so the same code runs
//! under a live guest and over a recorded trace. The backend validates all advice ([`Advice::validated`]) and stays
//! correct whatever a policy advises.

mod advice;
mod catalogue;
mod contract;
mod error;
mod eviction;
mod fault;
mod file;
mod link;
mod modifier;
mod params;
mod regions;
mod spec;
#[cfg(test)]
mod test_view;
mod view;

pub use advice::{Advice, Wish};
pub(crate) use advice::{MAX_WISH, MAX_WISHES};
pub use catalogue::policies;
pub use contract::{AccessedBits, EvictionPolicy, FaultPolicy, NoBits, PolicyFactory};
pub use error::PolicyError;
pub use eviction::{ByMigration, Clock, Fifo, Fill, Lfu, Lru, S3Fifo};
pub use fault::{
    AccessCounter, Adaptive, Density, FirstTouch, OnDemand, PlacementError, Sequential,
};
pub use file::{PolicyFile, policy_checksum};
pub use link::{LinkMatrix, LinkModel};
pub use params::{Accepts, PolicyInfo, PolicyParam};
pub use regions::PART;
pub(crate) use regions::{MAX_REGIONS, Regions};
pub use spec::PolicySpec;
pub use view::{BlockFault, BlockView, Recent, Seen};
