//! From a sweep to its tables.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::error::SweepError;
use super::journal::{Existing, FORMAT, Header, Writer};
use super::plan::{Sweep, VERSION};
use super::results::Results;
use super::row::Row;
use super::schedule::{self, Parallel};
use super::shard::Shard;
use super::{JOURNAL, Runner};
use crate::output::{Files, OutputError};

/// How a sweep is done.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder for the journal and the tables.
    pub folder: PathBuf,
    /// The files that the sweep reads besides its traces, each with its role: they are never written over.
    pub reads: Vec<(&'static str, PathBuf)>,
    /// The part of it to execute.
    pub shard: Shard,
    /// Continue where another process has stopped.
    pub resume: bool,
    /// How many runs at a time.
    pub parallel: Parallel,
    /// Show a progress bar if standard error is a terminal.
    pub progress: bool,
}

/// The runs that are done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Runs done now.
    pub runs: usize,
    /// Runs that were in the journal already.
    pub skipped: usize,
    /// Runs whose last attempt failed; each has an `error` in the tables.
    pub failed: Vec<String>,
    /// The trace files in which no access is a device's, so that nothing migrates in their runs.
    pub idle: BTreeSet<String>,
}

impl Sweep {
    /// Does the runs of a shard that are not in its journal, then writes the tables and the page. Replays give the same tables
    /// however many are done at a time.
    ///
    /// # Errors
    /// The folder cannot be used, belongs to another sweep, or has no room. Finished runs are in the journal.
    pub fn start(&self, settings: &Settings, runner: &dyn Runner) -> Result<Done, SweepError> {
        let header = Header {
            format: FORMAT,
            sweep: self.id(),
            title: self.title.clone(),
            question: self.question.clone(),
            version: VERSION.to_owned(),
            runs: self.runs.len(),
            shard: settings.shard,
        };
        let mut files = Files::default();
        for (what, path) in &settings.reads {
            files.reads(what, path);
        }
        for path in self.traces() {
            files.reads("a trace of the sweep", path);
        }
        files.prints(SAID)?;
        let path = claim_journal(&settings.folder, &mut files)?;
        let results = Results::open(&settings.folder, &mut files)?;
        spare_results(&files)?;
        let existing = match settings.resume {
            true => Existing::Resume,
            false => Existing::Refuse,
        };
        let (mut journal, mut rows) = Writer::open(&path, &header, existing)?;
        let finished: Vec<usize> = rows
            .iter()
            .filter(|(_, row)| row.error.is_none())
            .map(|(index, _)| *index)
            .collect();
        let skipped = finished.len();
        let left: Vec<_> = self
            .part(settings.shard)
            .filter(|run| finished.binary_search(&run.index).is_err())
            .collect();
        let bar = progress_bar(settings, left.len());

        let runs = left.len();
        let result = schedule::run_all(left.into_iter(), runner, settings.parallel, |receiver| {
            for finished in receiver {
                let row = self.row(&header.sweep, finished.run);
                let row = match finished.outcome {
                    Ok(measured) => row.with(measured),
                    Err(error) => Row {
                        error: Some(error),
                        ..row
                    },
                };
                journal.append(&row)?;
                rows.insert(finished.run.index, row);
                bar.inc(1);
            }
            Ok::<(), SweepError>(())
        });
        bar.finish_and_clear();
        result?;

        results.write(&settings.folder, &rows)?;
        Ok(Done {
            runs,
            skipped,
            failed: failed(&rows),
            idle: idle(&rows),
        })
    }
}

/// Returns the trace files, as the sweep names them, in which no access is a device's.
pub(super) fn idle(rows: &BTreeMap<usize, Row>) -> BTreeSet<String> {
    let idle = rows.values().filter(|row| row.is_idle());
    idle.filter_map(|row| row.params.clone()).collect()
}

/// Returns the runs that failed, in words.
pub(super) fn failed(rows: &BTreeMap<usize, Row>) -> Vec<String> {
    let failed = |row| Some(failure(row, row.error.as_deref()?));
    rows.values().filter_map(failed).collect()
}

fn failure(row: &Row, error: &str) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    format!(
        "run {} ({}, {}, device memory {}, seed {}): {error}",
        row.run.unwrap_or_default(),
        text(&row.source),
        text(&row.policy),
        crate::size::Size(row.device_memory_bytes.unwrap_or_default()),
        row.seed.unwrap_or_default(),
    )
}

/// The summary that commands print when a sweep or a merge is done.
pub(super) const SAID: &str = "what was done";

/// Checks that standard output is none of the results: the summary would be written to the end of that file.
pub(super) fn spare_results(files: &Files) -> Result<(), OutputError> {
    match files.use_stdout() {
        false => Ok(()),
        true => Err(OutputError::Unfit {
            what: SAID,
            path: PathBuf::from("-"),
            why: "a table or the page goes there; let standard output lead elsewhere",
        }),
    }
}

/// Makes a sweep's folder, and sees that the journal in it is nothing else. Returns where it is.
pub(super) fn claim_journal(folder: &Path, files: &mut Files) -> Result<PathBuf, SweepError> {
    // The folder may not be there yet, but nothing else may be in its place.
    if folder.metadata().is_ok_and(|there| !there.is_dir()) {
        Err(OutputError::Unfit {
            what: "the results",
            path: folder.to_owned(),
            why: "it is a file; name a folder for them",
        })?;
    }
    let made = match folder.as_os_str() == "-" {
        true => Err(io::Error::other(
            "results are several files and do not go to standard output; name a folder",
        )),
        false => fs::create_dir_all(folder),
    };
    made.map_err(|error| SweepError::File {
        doing: "making folder",
        path: folder.to_owned(),
        error,
    })?;
    let path = folder.join(JOURNAL);
    files.appended("the journal", &path)?;
    Ok(path)
}

fn progress_bar(settings: &Settings, runs: usize) -> ProgressBar {
    // Draws nothing where standard error is no terminal.
    let target = match settings.progress {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(runs as u64), target);
    let template = "{elapsed} {wide_bar} {pos}/{len} runs, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
