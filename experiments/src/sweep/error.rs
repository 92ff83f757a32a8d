//! The errors of sweeps.

use std::io;
use std::path::PathBuf;

use hmm_backend::limits::Refusal;
use thiserror::Error;

use super::Shard;
use crate::figures::count;
use crate::output::OutputError;
use crate::toml_files;

/// Why a sweep or a merge was not done, or not finished. Whatever was finished before is kept.
#[derive(Debug, Error)]
pub enum SweepError {
    /// The file cannot be read.
    #[error("reading sweep file {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        error: io::Error,
    },
    /// The file is not TOML or has something unknown in it; the error shows where.
    #[error("in sweep file {}: {}", path.display(), toml_files::wrong(error))]
    Toml {
        /// The file.
        path: PathBuf,
        /// The mistake and its place. No source of this error, because the message has its text.
        error: Box<toml::de::Error>,
    },
    /// The file names something that does not exist or cannot be.
    #[error("{}:{line}:{column}: {what}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// The mistake, and the valid choices.
        what: String,
    },
    /// The host refused a thread for runs.
    #[error("starting a thread for runs: {0}; or do fewer at a time with --jobs")]
    Thread(#[source] Refusal),
    /// A file of the sweep's folder cannot be used.
    #[error("{doing} {}: {error}", path.display())]
    File {
        /// The attempted operation.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        error: io::Error,
    },
    /// The disk is full, or something else keeps results from being stored.
    #[error(
        "writing {}: {error}; the results of {} are kept, and `--resume` goes on from there", path.display(), count(*finished as u64, "run")
    )]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        error: io::Error,
        /// The number of runs whose results are safe.
        finished: usize,
    },
    /// There are results already.
    #[error(
        "{} has the results of {} already; {}choose another folder with -o", path.display(), count(*finished as u64, "run"),
        if *left > 0 { "add --resume to go on with them, or " } else { "nothing is left to do; " }
    )]
    Exists {
        /// The folder.
        path: PathBuf,
        /// The number of runs that have results.
        finished: usize,
        /// The number of runs that are still to be done, or failed.
        left: usize,
    },
    /// There are results where the whole of a sweep should go.
    #[error("{} has the results of {} already; choose another folder with -o", path.display(), count(*finished as u64, "run"))]
    Occupied {
        /// The folder.
        path: PathBuf,
        /// The number of runs that have results.
        finished: usize,
    },
    /// The journal is of something else.
    #[error(
        "{} is the journal of another sweep ({theirs}, this is {ours}): the sweep file, a trace, a script, the shard or the version of Hmmvisor has changed since; choose another folder with -o", path.display()
    )]
    Other {
        /// The journal.
        path: PathBuf,
        /// The sweep of the journal.
        theirs: String,
        /// This sweep.
        ours: String,
    },
    /// The journal is damaged elsewhere than at its end.
    #[error("{}, line {line}: {what}", path.display())]
    Journal {
        /// The journal.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The mistake.
        what: String,
    },
    /// Another process uses the folder.
    #[error("{} is in use by another `hmmvisor sweep`", path.display())]
    Busy {
        /// The journal.
        path: PathBuf,
    },
    /// Two folders have the same shard.
    #[error("shard {shard} is in both {} and {}; name each shard once", first.display(), second.display())]
    Overlap {
        /// The shard that there is twice.
        shard: Shard,
        /// The folder that was named first.
        first: PathBuf,
        /// The other folder that has the same shard.
        second: PathBuf,
    },
    /// The folders are not of the same sweep.
    #[error("{} and {} are not parts of one sweep: {what}", first.display(), second.display())]
    Mixed {
        /// The first folder.
        first: PathBuf,
        /// The one that does not fit.
        second: PathBuf,
        /// The difference.
        what: String,
    },
    /// Folders were not named.
    #[error("shards {missing} are missing")]
    Missing {
        /// The numbers of the shards, as a list.
        missing: String,
    },
    /// A shard is not finished.
    #[error(
        "{}: shard {shard} is not finished, it lacks {missing} of {}; go on with it with --resume", path.display(), count(*share as u64, "run")
    )]
    Unfinished {
        /// The folder.
        path: PathBuf,
        /// The shard.
        shard: Shard,
        /// Runs that are missing.
        missing: usize,
        /// Runs of the shard.
        share: usize,
    },
    /// Nothing to merge.
    #[error("no folders to merge")]
    Nothing,
    /// The journal, a table or the page would be written over something else, or cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A table cannot be made.
    #[error("writing {}: {what}", path.display())]
    Table {
        /// The file.
        path: PathBuf,
        /// The cause.
        what: String,
    },
}
