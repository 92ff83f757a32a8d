//! Rows as CSV and Parquet. Each table is written beside its place and then put there, so that there is never half a
//! table under its name.

use super::error::SweepError;
use super::row::{COLUMNS, Row};
use crate::output;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

/// Writes a CSV file with a line of names. What a run does not have is empty.
///
/// # Errors
/// The file cannot be written; nothing is left of it then.
pub fn write_csv(path: &Path, rows: &[&Row]) -> Result<(), SweepError> {
    put(path, |file| {
        let mut writer = csv::Writer::from_writer(file);
        if rows.is_empty() {
            writer.write_record(COLUMNS.iter().map(|(name, _)| name))?;
        }
        for row in rows {
            writer.serialize(row)?;
        }
        writer.flush()?;
        Ok(())
    })
}

/// Writes a Parquet file; without the feature `parquet`, none. What a run does not have is null.
///
/// # Errors
/// The file cannot be written; nothing is left of it then.
pub fn write_parquet(path: &Path, rows: &[&Row]) -> Result<(), SweepError> {
    #[cfg(feature = "parquet")]
    put(path, |file| {
        super::columns::write(file, rows).map_err(Into::into)
    })?;
    let _ = (path, rows);
    Ok(())
}

type Failure = Box<dyn std::error::Error>;

fn put(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<(), Failure>,
) -> Result<(), SweepError> {
    output::put(path, write).map_err(|error| SweepError::Table {
        path: path.to_owned(),
        what: format!("{error}; the runs are safe in the journal"),
    })
}
