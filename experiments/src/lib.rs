//! Experiments with migration policies: record the events of a guest ([`trace`]), replay them under other policies
//! without a VM ([`replay`]), sweep over policies and sizes ([`sweep`]), and look at the outcome ([`report`]).
//!
//! Knows no KVM: everything here works on traces and on the backend's model engine.

pub mod figures;
pub mod output;
pub mod replay;
pub mod report;
mod returns;
pub mod size;
pub mod steady;
pub mod sweep;
pub mod toml_files;
pub mod trace;
