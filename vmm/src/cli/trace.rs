//! `hmmvisor trace …`

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;
use hmmvisor_experiments::trace::export::{Format, export};
use hmmvisor_experiments::trace::{Tail, TraceInfo, TraceReader};

/// What can be done with traces.
#[derive(Subcommand)]
pub enum TraceCommand {
    /// Say what is in a trace
    Info {
        /// The trace
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Write one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write a trace for other programs: csv, parquet (DuckDB, Polars, pandas) or perfetto (ui.perfetto.dev)
    Export {
        /// The trace
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// csv, parquet or perfetto
        #[arg(long, value_name = "FORMAT")]
        format: Format,
        /// Where to
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
    },
}

impl TraceCommand {
    /// Does it.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            TraceCommand::Info { file, json } => {
                let (info, error) = TraceInfo::read(TraceReader::open(&file)?);
                let text = match json {
                    true => serde_json::to_string(&info).context("writing JSON")? + "\n",
                    false => info.to_string(),
                };
                // Whoever closed the pipe does not want to read it.
                let _ = io::stdout().write_all(text.as_bytes());
                error.map_or(Ok(ExitCode::SUCCESS), |error| Err(error.into()))
            }
            TraceCommand::Export {
                file,
                format,
                output,
            } => {
                let trace = TraceReader::open(&file)?;
                let tail = trace.tail();
                let events = export(trace, format, &output)?;
                let note = match tail {
                    Tail::Complete | Tail::Corrupt { .. } => "",
                    Tail::Unfinished | Tail::Truncated { .. } => {
                        "; the trace was not finished, see `hmmvisor trace info`"
                    }
                };
                let _ = writeln!(
                    io::stdout(),
                    "{events} events written to {}{note}",
                    output.display()
                );
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}
