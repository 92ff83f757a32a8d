//! Memory traces of other programs become access traces.

mod addresses;
mod csv;
mod importer;
mod lackey;
mod lines;

use std::io::{self, BufRead};
use std::str::FromStr;

use thiserror::Error;

use self::importer::{Failure, Importer};
use super::error::TraceError;
use super::limits;
use super::meta::{TraceKind, TraceMeta, TraceTotals};
use super::writer::TraceWriter;
use crate::output::Output;

/// What instruction fetches count as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Instructions {
    /// They are reads.
    AreReads,
    /// They are left out.
    LeftOut,
}

/// The formats of other programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// `valgrind --tool=lackey --trace-mem=yes`.
    Lackey {
        /// What instruction fetches count as.
        instructions: Instructions,
        /// The device that the program's accesses count as; without one, a CPU.
        device: Option<u8>,
    },
    /// A table with a line of column names, see `docs/traces.md`.
    Csv,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        match text {
            "lackey" => Ok(Format::Lackey {
                instructions: Instructions::AreReads,
                device: None,
            }),
            "csv" => Ok(Format::Csv),
            _ => Err(format!("unknown format `{text}`; there are lackey and csv")),
        }
    }
}

/// Why nothing was imported, or not all of it. The output holds what comes before, without an end; if that is nothing, it is
/// as it was before.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The output.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The input cannot be read.
    #[error("reading {source_name}: {error}")]
    Input {
        /// The input.
        source_name: String,
        /// The cause.
        #[source]
        error: io::Error,
    },
    /// The input is not what it should be.
    #[error("{source_name}, line {line}: {why}")]
    Line {
        /// The input.
        source_name: String,
        /// The line, from 1.
        line: u64,
        /// The mistake in it.
        why: String,
    },
    /// No replay would come to an end.
    #[error(
        "{source_name}: its accesses name {pages} pages besides the first of each, too many for a trace of {bytes} bytes, of which {} and {} for each byte are replayed; a column `repeats` says how often the same pages are accessed",
        limits::NAMED,
        limits::NAMED_PER_BYTE
    )]
    TooManyPages {
        /// The input.
        source_name: String,
        /// The number of pages, without the first of each access.
        pages: u64,
        /// The length of the trace.
        bytes: u64,
    },
    /// There are no accesses in the input.
    #[error("{source_name} has no accesses; {hint}")]
    Empty {
        /// The input.
        source_name: String,
        /// How to make one that has some.
        hint: &'static str,
    },
}

/// Reads a program's memory trace, called `source`, and writes it as an access trace. Holds one block of it in memory
/// and a table of the 2 MiB blocks of addresses.
pub fn import(
    input: impl BufRead,
    source: &str,
    format: Format,
    output: Output,
) -> Result<TraceTotals, ImportError> {
    let meta = TraceMeta {
        kind: TraceKind::Access,
        hmmvisor: env!("CARGO_PKG_VERSION").to_owned(),
        source: Some(source.to_owned()),
        ..TraceMeta::default()
    };
    let mut importer = Importer::new(TraceWriter::new(output, &meta)?);
    let result = match format {
        Format::Lackey {
            instructions,
            device,
        } => lackey::read(input, instructions, device, &mut importer),
        Format::Csv => csv::read(input, &mut importer),
    };
    let source_name = source.to_owned();
    let result = result.map_err(|failure| match failure {
        Failure::Trace(error) => ImportError::Trace(error),
        Failure::Input(error) => ImportError::Input { source_name, error },
        Failure::Line(line, why) => ImportError::Line {
            source_name,
            line,
            why,
        },
    });
    if importer.events == 0 {
        importer.writer.discard()?;
        result?;
        return Err(ImportError::Empty {
            source_name: source.to_owned(),
            hint: match format {
                Format::Lackey { .. } => {
                    "make it with `valgrind --tool=lackey --trace-mem=yes --log-file=FILE PROGRAM`"
                }
                Format::Csv => "it needs a line for each access",
            },
        });
    }
    // What comes before something wrong stays.
    importer.flush()?;
    importer.describe();
    importer.writer.flush()?;
    result?;
    // What is imported can be replayed. Only now is it known how many bytes the events take.
    let bytes = importer.writer.length();
    if let Err(pages) = importer.named.check(bytes) {
        return Err(ImportError::TooManyPages {
            source_name: source.to_owned(),
            pages,
            bytes,
        });
    }
    Ok(importer.writer.finish()?)
}
