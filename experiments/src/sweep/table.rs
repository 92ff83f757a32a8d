//! Rows as CSV and Parquet. Each table is written beside its place and then put there, so that there is never half a
//! table under its name.

use super::error::SweepError;
use super::row::{COLUMNS, Row};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

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
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let beside = PathBuf::from(name);
    let written = (|| {
        let mut file = BufWriter::new(File::create(&beside)?);
        write(&mut file)?;
        file.flush()?;
        file.get_ref().sync_all()?;
        fs::rename(&beside, path)?;
        Ok(())
    })();
    written.map_err(|error: Failure| {
        let _ = fs::remove_file(&beside);
        SweepError::Table {
            path: path.to_owned(),
            what: format!("{error}; the runs are safe in the journal"),
        }
    })
}
