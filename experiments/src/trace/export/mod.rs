//! Traces for other programs: CSV, Parquet, Perfetto.

mod csv;
mod events;
#[cfg(feature = "parquet")]
mod parquet;
mod perfetto;
mod residency;
mod row;

use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use super::error::TraceError;
use super::reader::TraceReader;
use crate::output::{Output, shown};

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
    /// The trace. The output holds what comes before, if it replaces nothing.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The output; what was there before still is.
    #[error("writing {}: {error}", shown(path))]
    Output {
        /// The path of the output.
        path: PathBuf,
        /// The cause.
        #[source]
        error: io::Error,
    },
    /// The program was built without the format.
    #[error(
        "this program was built without Parquet; build it with the feature `parquet`, or use --format csv"
    )]
    NoParquet,
}

/// Writes a trace's events. Returns how many.
///
/// A trace that is corrupt somewhere is exported up to there, unless that would replace a file, and then reported.
pub fn export(
    mut trace: TraceReader,
    format: Format,
    mut output: Output,
) -> Result<u64, ExportError> {
    #[cfg(not(feature = "parquet"))]
    if format == Format::Parquet {
        return Err(ExportError::NoParquet);
    }
    let path = output.path().to_owned();
    let fail = |error| ExportError::Output {
        path: path.clone(),
        error,
    };
    let result = match format {
        Format::Csv => csv::write(&mut trace, &mut output),
        #[cfg(feature = "parquet")]
        Format::Parquet => parquet::write(&mut trace, &mut output),
        #[cfg(not(feature = "parquet"))]
        Format::Parquet => unreachable!("refused above"),
        Format::Perfetto => perfetto::write(&mut trace, &mut output),
    };
    match result.map_err(fail)? {
        (events, None) => output.commit().map(|()| events).map_err(fail),
        (_, Some(error)) => {
            output.keep_part().map_err(fail)?;
            Err(error.into())
        }
    }
}
