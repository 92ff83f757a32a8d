//! The errors of trace files.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::output::OutputError;

/// Why a trace cannot be written or read.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The system refused.
    #[error("{what} trace {}: {error}", path.display())]
    Io {
        /// The attempted operation, like `reading`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        error: io::Error,
    },
    /// The output is refused.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// Something else than a trace.
    #[error(
        "{} is not a trace of Hmmvisor: it does not begin with `HMMTRACE`; other programs' traces become one by `hmmvisor trace import`",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Written by a later version.
    #[error(
        "trace {} has format version {version}, this program reads up to version {}; use the program that wrote it, or a later one",
        path.display(),
        super::format::VERSION
    )]
    Future {
        /// The file.
        path: PathBuf,
        /// The version it says it has.
        version: u32,
    },
    /// Ends within its header: there is nothing in it yet.
    #[error(
        "trace {} ends at offset {length}, before its header does: its recording was stopped at the very beginning; record it again",
        path.display()
    )]
    NoHeader {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        length: u64,
    },
    /// The data to write is more than a reader accepts.
    #[error(
        "writing trace {}: its tables of threads and addresses have {bytes} bytes, {} are the most in a trace; make one of a part of the program's run", path.display(), super::format::PAYLOAD_LIMIT
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The number of bytes.
        bytes: usize,
    },
    /// Bytes that no writer writes.
    #[error(
        "trace {} is corrupt at offset {offset}: {why}; {}", path.display(),
        if *offset == 0 { "nothing of it can be used" } else { "what comes before is good" }
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The offset of the damaged block, in bytes.
        offset: u64,
        /// The damage.
        why: &'static str,
    },
}

impl TraceError {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TraceError {
        let path = path.to_owned();
        move |error| TraceError::Io { what, path, error }
    }
}
