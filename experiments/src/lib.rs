//! What researchers do with migration policies: record what a guest did ([`trace`]), replay it under other policies
//! without a VM ([`replay`]), sweep over policies and sizes ([`sweep`]), and look at the outcome ([`report`]).
//!
//! Knows no KVM: everything here works on traces and on the backend's model engine.

/// A page that returned to a device's memory at least as often, after it had been brought back, is called thrashing.
pub(crate) const THRASHING: u32 = 3;

pub mod output;
pub mod replay;
pub mod report;
pub mod size;
pub mod sweep;
pub mod trace;
