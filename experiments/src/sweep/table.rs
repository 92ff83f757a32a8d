//! Rows as CSV and Parquet.

use std::fmt::Display;
#[cfg(feature = "parquet")]
use std::io::{BufWriter, Write};
use std::path::Path;

use super::error::SweepError;
use super::row::{COLUMNS, Row};
use crate::output::Output;

/// Writes a line of names and a line for each row as CSV. What a run does not have is empty.
///
/// # Errors
/// The output cannot be written.
pub fn write_csv(output: &mut Output, rows: &[&Row]) -> Result<(), SweepError> {
    let path = output.path().to_owned();
    let write = || {
        let mut writer = csv::Writer::from_writer(output);
        if rows.is_empty() {
            writer.write_record(COLUMNS.iter().map(|(name, _)| name))?;
        }
        for row in rows {
            writer.serialize(row)?;
        }
        writer.flush()?;
        Ok(())
    };
    write().map_err(|error: csv::Error| failed(&path, error))
}

/// Writes rows as Parquet. What a run does not have is null.
///
/// # Errors
/// The output cannot be written.
#[cfg(feature = "parquet")]
pub fn write_parquet(output: &mut Output, rows: &[&Row]) -> Result<(), SweepError> {
    let path = output.path().to_owned();
    let mut buffered = BufWriter::new(output);
    super::columns::write(&mut buffered, rows).map_err(|error| failed(&path, error))?;
    buffered.flush().map_err(|error| failed(&path, error))
}

pub(super) fn failed(path: &Path, error: impl Display) -> SweepError {
    SweepError::Table {
        path: path.to_owned(),
        what: format!("{error}; the runs are safe in the journal"),
    }
}
