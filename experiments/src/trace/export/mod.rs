//! Traces for other programs: CSV, Parquet, Perfetto.

mod csv;
#[cfg(feature = "parquet")]
mod parquet;
mod perfetto;
mod residency;
mod row;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

use super::error::TraceError;
use super::reader::TraceReader;
use crate::output::is_input;

pub use row::COLUMNS;

/// A format that other programs read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// A row for each event.
    Csv,
    /// The same columns, for DuckDB, Polars, pandas.
    Parquet,
    /// Tracks and counters over time, for the Perfetto viewer.
    Perfetto,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        match text {
            "csv" => Ok(Format::Csv),
            "parquet" => Ok(Format::Parquet),
            "perfetto" => Ok(Format::Perfetto),
            _ => Err(format!(
                "unknown format `{text}`; there are csv, parquet and perfetto"
            )),
        }
    }
}

/// Why a trace was not exported, or not all of it.
#[derive(Debug, Error)]
pub enum ExportError {
    /// The trace. The output holds what comes before.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The output; there is none then.
    #[error("writing {}: {error}", path.display())]
    Output {
        /// Where to.
        path: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// The program was built without the format.
    #[error(
        "this program was built without Parquet; build it with the feature `parquet`, or use --format csv"
    )]
    NoParquet,
}

/// Writes a trace's events to a new file. Returns how many.
///
/// A trace that is corrupt somewhere is exported up to there and then reported.
pub fn export(mut trace: TraceReader, format: Format, output: &Path) -> Result<u64, ExportError> {
    #[cfg(not(feature = "parquet"))]
    if format == Format::Parquet {
        return Err(ExportError::NoParquet);
    }
    let fail = |error| ExportError::Output {
        path: output.to_owned(),
        error,
    };
    // Whoever exports onto the trace itself would lose it.
    if is_input(trace.path(), output) {
        return Err(fail(io::Error::other(
            "that is the trace itself; name another file",
        )));
    }
    let file = File::create(output).map_err(fail)?;
    let result = match format {
        Format::Csv => csv::write(&mut trace, file),
        #[cfg(feature = "parquet")]
        Format::Parquet => parquet::write(&mut trace, file),
        #[cfg(not(feature = "parquet"))]
        Format::Parquet => unreachable!("refused above"),
        Format::Perfetto => perfetto::write(&mut trace, file),
    };
    match result {
        Ok((events, None)) => Ok(events),
        Ok((_, Some(error))) => Err(error.into()),
        Err(error) => {
            // Not a pipe or a device.
            if output.is_file() {
                let _ = fs::remove_file(output);
            }
            Err(fail(error))
        }
    }
}

/// What a format's writer returns: how many events it wrote, and why there were no more; or why it could not write.
type Written = io::Result<(u64, Option<TraceError>)>;

/// Calls `each` with the trace's events, up to the first that cannot be read.
fn each_event(
    trace: &mut TraceReader,
    mut each: impl FnMut(&hmm_backend::Event) -> io::Result<()>,
) -> Written {
    let mut events = 0;
    for event in trace {
        match event {
            Ok(event) => each(&event)?,
            Err(error) => return Ok((events, Some(error))),
        }
        events += 1;
    }
    Ok((events, None))
}
