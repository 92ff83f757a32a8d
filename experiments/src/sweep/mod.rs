//! Matrices of runs: workloads or traces × policies × device-memory sizes × link models × seeds.
//!
//! [`Sweep::read`] turns a TOML file into a list of [`SweepRun`]s, checking every name in it; [`Sweep::start`] does them, in
//! parallel, each through a [`Runner`]. A finished run is a [`Row`], and its first place is the [`journal`]: it
//! outlives a kill at any moment. Tables ([`table`]) and a page are made from the journal, by [`Sweep::start`] for one sweep and by
//! [`merge`] for shards.

#[cfg(feature = "parquet")]
mod columns;
mod config;
mod error;
pub mod journal;
mod merge;
mod plan;
mod results;
mod row;
mod run;
mod schedule;
mod shard;
pub mod table;

use std::path::Path;

pub use error::SweepError;
pub use merge::{Merged, merge};
pub use plan::{Link, Policy, Source, Stamp, Sweep, SweepRun, TraceFacts, TraceSource, Workload};
pub use row::{COLUMNS, Column, Measured, Row};
pub use run::{Done, Settings};
pub use schedule::Parallel;
pub use shard::Shard;

/// Executes single runs, and knows the workloads and policies. Sweeps themselves depend neither on KVM nor on policies nor on trace files.
pub trait Runner: Sync {
    /// Whether there is such a policy. Returns its exact specification, with all defaults, and for scripts with what
    /// identifies their text: it is written into the results and must change when the policy does.
    ///
    /// # Errors
    /// What is wrong, and what there is instead.
    fn policy(&self, spec: &str) -> Result<String, String>;

    /// Whether there is such a workload with such parameters, and whether it can be run this way; `source` is no trace.
    ///
    /// # Errors
    /// What is wrong, and what there is instead.
    fn workload(&self, source: &Source) -> Result<(), String>;

    /// Returns the description in this trace.
    ///
    /// # Errors
    /// It cannot be opened or is damaged.
    fn trace(&self, path: &Path) -> Result<TraceFacts, String>;

    /// Executes one run. Called from several threads at a time.
    ///
    /// # Errors
    /// Why it failed; the sweep continues with the other runs.
    fn run(&self, run: &SweepRun) -> Result<Measured, String>;
}

/// The name of the file with the finished runs.
pub const JOURNAL: &str = "journal.jsonl";
/// The names of the tables.
pub const TABLES: [&str; 2] = ["results.csv", "results.parquet"];
/// The name of the page about them.
pub const PAGE: &str = "report.html";
