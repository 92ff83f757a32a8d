//! `hmmvisor trace …`

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use hmmvisor::size::Size;
use hmmvisor_accesses::Settings;
use hmmvisor_experiments::figures::count;
use hmmvisor_experiments::output::{Files, shown};
use hmmvisor_experiments::trace::export::{ExportError, Format, export};
use hmmvisor_experiments::trace::import;
use hmmvisor_experiments::trace::{Tail, TraceInfo, TraceReader, generate};

use super::failed::failed;
use super::mistake::Mistake;
use super::output::{json_output, put_json, status, summary};
use super::replay::NO_DEVICE;

/// What can be done with traces.
#[derive(Subcommand)]
pub enum TraceCommand {
    /// Say what is in a trace
    #[command(override_usage = "hmmvisor trace info [OPTIONS] <TRACE>")]
    Info(TraceArgs),
    /// Write every access of a built-in workload to a page, without a virtual machine
    Generate(GenerateArgs),
    /// Make a trace of another program's memory accesses: valgrind's lackey, or CSV (docs/traces.md)
    Import(ImportArgs),
    /// Write a trace for other programs: csv, parquet (DuckDB, Polars, pandas) or perfetto (ui.perfetto.dev)
    Export {
        /// The trace
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// csv, parquet or perfetto
        #[arg(long, value_name = "FORMAT")]
        format: Format,
        /// Where to; - for standard output
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
    },
}

/// A trace to read, and where its figures go as JSON. In `--json TRACE` the only file is the trace, whatever clap takes it
/// for: `--json` needs no value.
#[derive(Args)]
pub struct TraceArgs {
    /// The trace, of a live run (`run --record`) or of accesses (`trace generate`, `trace import`)
    #[arg(value_name = "TRACE", required_unless_present = "json")]
    trace: Option<PathBuf>,
    /// Write the figures as one JSON object, to FILE; without FILE or with `-` to standard output, and all else to standard error
    #[arg(long, value_name = "FILE|-", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
}

impl TraceArgs {
    /// Returns the trace, and where JSON goes if it is wanted.
    pub fn files(&self) -> Result<(&Path, Option<&Path>), Mistake> {
        let stdout = Path::new("-");
        match (self.trace.as_deref(), self.json.as_deref()) {
            (Some(trace), json) => Ok((trace, json)),
            (None, Some(trace)) if trace != stdout => Ok((trace, Some(stdout))),
            (None, _) => Err(Mistake("no trace is named".into())),
        }
    }
}

/// Options of `trace generate`.
#[derive(Args)]
pub struct GenerateArgs {
    /// The workload; `hmmvisor workloads` lists them
    #[arg(value_name = "WORKLOAD")]
    workload: String,
    /// Parameter of the workload; may be given several times
    #[arg(long = "param", value_name = "K=V", value_parser = super::run::param)]
    params: Vec<(String, String)>,
    /// Number of vCPUs, 1 to 64
    #[arg(long, value_name = "N", default_value_t = 1)]
    vcpus: u32,
    /// Number of accelerators, 1 to 16
    #[arg(long, value_name = "N", default_value_t = 1)]
    devices: u32,
    /// Guest memory, like 64M or 1G
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    memory: Size,
    /// Seed of the workload's pseudo-random numbers
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Where to; - for standard output
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

impl GenerateArgs {
    fn run(self) -> Result<ExitCode> {
        let settings = Settings {
            workload: self.workload,
            params: self.params,
            vcpus: self.vcpus,
            devices: self.devices,
            memory: self.memory.0,
            seed: self.seed,
        };
        let mut files = Files::default();
        let output = files.growing("the trace", &self.output)?;
        let totals = generate(&settings, output)?;
        written(&files, totals.events, &self.output, "")
    }
}

/// Options of `trace import`.
#[derive(Args)]
pub struct ImportArgs {
    /// What the other program wrote; - for standard input
    #[arg(value_name = "FILE")]
    input: PathBuf,
    /// lackey (valgrind --tool=lackey --trace-mem=yes) or csv
    #[arg(long, value_name = "FORMAT")]
    format: import::Format,
    /// Leave out the instruction fetches in a trace of lackey
    #[arg(long)]
    no_instructions: bool,
    /// Let the accesses in a trace of lackey be those of this accelerator; without, they are a CPU's and nothing migrates
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..64))]
    device: Option<u8>,
    /// Where to; - for standard output
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

impl ImportArgs {
    fn run(self) -> Result<ExitCode> {
        let format = match self.format {
            import::Format::Lackey { .. } => import::Format::Lackey {
                instructions: match self.no_instructions {
                    true => import::Instructions::LeftOut,
                    false => import::Instructions::AreReads,
                },
                device: self.device,
            },
            import::Format::Csv if self.no_instructions => {
                bail!(Mistake("--no-instructions is for --format lackey".into()))
            }
            import::Format::Csv if self.device.is_some() => {
                bail!(Mistake(
                    "--device is for --format lackey; name devices in the column `device`".into()
                ))
            }
            import::Format::Csv => import::Format::Csv,
        };
        let name = self.input.display().to_string();
        let mut files = Files::default();
        let input: Box<dyn Read> = match name.as_str() {
            "-" => {
                files.reads_open("the input", io::stdin());
                Box::new(io::stdin())
            }
            _ => {
                let file = File::open(&self.input).map_err(failed(format!("opening {name}")))?;
                files.reads_open("the input", &file);
                Box::new(file)
            }
        };
        files.prints("the number of events")?;
        let output = files.growing("the trace", &self.output)?;
        let input = BufReader::with_capacity(1 << 18, input);
        let totals = import::import(input, &name, format, output)?;
        let note = match totals.machine.is_some_and(|machine| machine.devices > 0) {
            true => String::new(),
            false => format!("; {NO_DEVICE}"),
        };
        written(&files, totals.events, &self.output, &note)
    }
}

fn written(files: &Files, events: u64, output: &Path, note: &str) -> Result<ExitCode> {
    let output = shown(output);
    status(
        files,
        &format!("{} written to {output}{note}\n", count(events, "event")),
    )?;
    Ok(ExitCode::SUCCESS)
}

impl TraceCommand {
    /// Does what the command says.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            TraceCommand::Info(args) => {
                let mut files = Files::default();
                let (trace, json) = args.files()?;
                files.reads("the trace", trace);
                let json = json_output(&mut files, json)?;
                files.prints("what is in it")?;
                let (info, error) = TraceInfo::read(TraceReader::open(trace)?);
                put_json(json, &info)?;
                summary(&files, &info.to_string())?;
                error.map_or(Ok(ExitCode::SUCCESS), |error| Err(error.into()))
            }
            TraceCommand::Generate(args) => args.run(),
            TraceCommand::Import(args) => args.run(),
            TraceCommand::Export {
                file,
                format,
                output,
            } => {
                let mut files = Files::default();
                files.reads("the trace", &file);
                let trace = TraceReader::open(&file)?;
                files.prints("the number of events")?;
                let export_to = files.whole("the events", &output)?;
                let tail = trace.tail();
                let events = match export(trace, format, export_to) {
                    // Exported into a pipe, whose reader has closed it: it has read enough.
                    Err(ExportError::Output { error, .. })
                        if error.kind() == ErrorKind::BrokenPipe =>
                    {
                        return Ok(ExitCode::SUCCESS);
                    }
                    events => events?,
                };
                let note = match tail {
                    Tail::Complete | Tail::Corrupt { .. } => "",
                    Tail::Unfinished | Tail::Truncated { .. } => {
                        "; the trace was not finished, see `hmmvisor trace info`"
                    }
                };
                written(&files, events, &output, note)
            }
        }
    }
}
