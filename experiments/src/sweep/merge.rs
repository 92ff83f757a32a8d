//! Shards put together.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use hmm_backend::limits;

use super::error::SweepError;
use super::journal::{Existing, Header, Journal, Writer};
use super::results::Results;
use super::row::Row;
use super::shard::Shard;
use super::{JOURNAL, run};
use crate::output::Files;

/// The result of a merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Runs of the whole sweep.
    pub runs: usize,
    /// The runs that failed; each has an `error` in the tables.
    pub failed: Vec<String>,
    /// The trace files in which no access is a device's, so that nothing migrates in their runs.
    pub idle: BTreeSet<String>,
}

/// Puts the shards of one sweep together: a journal, tables and a page as if the sweep had been done in one piece. Returns the
/// number of runs and which of them failed, in whatever shard.
///
/// # Errors
/// The folders are of different sweeps, one shard is there twice, is missing or is not finished; the output folder has
/// results or cannot be written.
pub fn merge(folders: &[PathBuf], out: &Path) -> Result<Merged, SweepError> {
    let shards = folders
        .iter()
        .map(|folder| Ok((folder, Journal::read(&folder.join(JOURNAL))?)))
        .collect::<Result<Vec<_>, SweepError>>()?;
    let (first_folder, first) = shards.first().ok_or(SweepError::Nothing)?;
    for (index, (folder, journal)) in shards.iter().enumerate() {
        let mixed = |what| SweepError::Mixed {
            first: first_folder.to_path_buf(),
            second: folder.to_path_buf(),
            what,
        };
        let (ours, theirs) = (&first.header, &journal.header);
        if (ours.sweep != theirs.sweep) || ours.runs != theirs.runs {
            return Err(mixed(format!(
                "{} of version {} and {} of version {}",
                ours.sweep, ours.version, theirs.sweep, theirs.version
            )));
        }
        if ours.shard.of != theirs.shard.of {
            return Err(mixed(format!(
                "one is split into {} shards, the other one into {}",
                ours.shard.of, theirs.shard.of
            )));
        }
        let same = |(_, other): &&(&PathBuf, Journal)| other.header.shard == theirs.shard;
        if let Some((other, _)) = shards[..index].iter().find(same) {
            return Err(SweepError::Overlap {
                shard: theirs.shard,
                first: other.to_path_buf(),
                second: folder.to_path_buf(),
            });
        }
    }
    complete(&shards)?;

    let header = Header {
        shard: Shard::WHOLE,
        ..first.header.clone()
    };
    let rows: BTreeMap<usize, Row> = shards
        .into_iter()
        .flat_map(|(_, journal)| journal.rows)
        .collect();
    let made = !out.exists();
    let put = put(folders, out, &header, &rows);
    if put.is_err() && made {
        // Fails if something is in it, which then is not of this merge.
        let _ = fs::remove_dir(out);
    }
    put.map(|()| Merged {
        runs: rows.len(),
        failed: run::failed(&rows),
        idle: run::idle(&rows),
    })
}

/// Writes the whole: all of it or nothing.
fn put(
    folders: &[PathBuf],
    out: &Path,
    header: &Header,
    rows: &BTreeMap<usize, Row>,
) -> Result<(), SweepError> {
    let mut files = Files::default();
    let path = run::claim_journal(out, &mut files)?;
    for folder in folders {
        files.reads("the journal of a shard", &folder.join(JOURNAL));
    }
    files.prints(run::SAID)?;
    let results = Results::open(out, &mut files)?;
    run::spare_results(&files)?;
    let is_new = !path.exists();
    let opened = Writer::open(&path, header, Existing::Refuse);
    let (mut journal, _) = opened.map_err(|error| match error {
        // A merge cannot be resumed.
        SweepError::Exists { path, finished, .. } => SweepError::Occupied { path, finished },
        SweepError::Write { .. } if is_new => {
            // Not even the journal's first line could be written, so the file holds nothing of an earlier merge.
            let _ = fs::remove_file(&path);
            again(error)
        }
        error => again(error),
    })?;
    let written = journal
        .append_all(rows.values())
        .and_then(|()| results.write(out, rows));
    if written.is_err() {
        // The shards have everything; half a merge is of no use.
        journal.discard();
    }
    written.map_err(again)
}

/// Advice for a merge that cannot be written: nothing of it is kept, so it cannot be resumed.
fn again(error: SweepError) -> SweepError {
    const AGAIN: &str = "make room and merge again";
    match error {
        SweepError::Write { path, error, .. } => SweepError::Table {
            path,
            what: format!(
                "{}; the runs are safe in the journal of each shard: {AGAIN}",
                limits::explain(&error)
            ),
        },
        SweepError::Table { path, what } => SweepError::Table {
            path,
            // It says that they are safe in the journal.
            what: format!("{what} of each shard: {AGAIN}"),
        },
        error => error,
    }
}

fn complete(shards: &[(&PathBuf, Journal)]) -> Result<(), SweepError> {
    let of = shards
        .first()
        .map_or(0, |(_, journal)| journal.header.shard.of);
    let missing: Vec<String> = (1..=of)
        .filter(|number| {
            let has = |(_, journal): &(&PathBuf, Journal)| journal.header.shard.number == *number;
            !shards.iter().any(has)
        })
        .map(|number| format!("{number}/{of}"))
        .collect();
    if !missing.is_empty() {
        return Err(SweepError::Missing {
            missing: missing.join(", "),
        });
    }
    for (folder, journal) in shards {
        let Header { shard, runs, .. } = journal.header;
        let share = shard.share(runs);
        if journal.rows.len() < share {
            return Err(SweepError::Unfinished {
                path: folder.to_path_buf(),
                shard,
                missing: share - journal.rows.len(),
                share,
            });
        }
    }
    Ok(())
}
