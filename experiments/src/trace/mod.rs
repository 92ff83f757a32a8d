//! Trace files: what happened to which page, when, and why.
//!
//! Two kinds of trace share one format. A *live* trace holds the backend's events of a run: faults, migrations,
//! frees. An *access* trace holds every access of a program to a page, without any memory behind it. `docs/traces.md`
//! describes the format byte by byte.
//!
//! [`TraceWriter`] writes events in compressed blocks, each complete in itself, so that a file whose writer was
//! killed is good up to its last block. [`TraceReader`] is an iterator that holds one block at a time.

mod columns;
mod error;
pub mod export;
mod format;
mod generate;
pub mod import;
mod info;
pub(crate) mod limits;
mod meta;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use error::TraceError;
pub use generate::{GenerateError, generate};
pub use info::{KindInfo, TraceInfo};
pub use meta::{Dropped, Machine, TraceKind, TraceMeta, TraceTotals};
pub use reader::{Tail, TraceReader};
pub use writer::TraceWriter;
