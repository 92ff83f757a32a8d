//! Memory traces of other programs become access traces.

mod addresses;
mod csv;
mod lackey;
mod lines;

use std::collections::BTreeMap;
use std::io::{self, BufRead};
use std::str::FromStr;
use std::time::Duration;

use hmm_backend::{Access, DeviceId, Event, EventKind, Hint, PageRange};
use thiserror::Error;

use self::addresses::Addresses;
use super::error::TraceError;
use super::limits::{self, Named};
use super::meta::{Machine, TraceKind, TraceMeta, TraceTotals};
use super::writer::TraceWriter;
use crate::output::Output;

/// The formats of other programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// `valgrind --tool=lackey --trace-mem=yes`.
    Lackey {
        /// Whether instruction fetches count as reads.
        instructions: bool,
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
                instructions: true,
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
        /// Why not.
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
        /// How many.
        pages: u64,
        /// Of the trace.
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
    let mut importer = Importer {
        writer: TraceWriter::new(output, &meta)?,
        addresses: Addresses::default(),
        pending: None,
        events: 0,
        named: Named::default(),
        accesses: 0,
        threads: BTreeMap::new(),
        devices: 0,
        pages: 0,
        own_times: false,
    };
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

/// Why an import stops.
enum Failure {
    Trace(TraceError),
    Input(io::Error),
    /// Number of the line, and why.
    Line(u64, String),
}

impl From<TraceError> for Failure {
    fn from(error: TraceError) -> Failure {
        Failure::Trace(error)
    }
}

/// Why an event is not taken.
enum Refused {
    Why(String),
    Trace(TraceError),
}

impl Refused {
    /// In this line of the input.
    fn at(self, line: u64) -> Failure {
        match self {
            Refused::Why(why) => Failure::Line(line, why),
            Refused::Trace(error) => Failure::Trace(error),
        }
    }
}

impl From<String> for Refused {
    fn from(why: String) -> Refused {
        Refused::Why(why)
    }
}

impl From<TraceError> for Refused {
    fn from(error: TraceError) -> Refused {
        Refused::Trace(error)
    }
}

/// Makes events of accesses.
struct Importer {
    writer: TraceWriter,
    addresses: Addresses,
    /// The last access, which may be repeated.
    pending: Option<Event>,
    /// Events so far.
    events: u64,
    named: Named,
    /// Accesses to pages so far.
    accesses: u64,
    /// Threads' numbers to vCPUs'.
    threads: BTreeMap<u32, u32>,
    /// One more than the highest device.
    devices: u32,
    /// One more than the highest page.
    pages: u32,
    /// Whether the input says when.
    own_times: bool,
}

impl Importer {
    /// The thread runs on this vCPU.
    fn thread(&mut self, thread: u32, vcpu: u32) -> Result<(), String> {
        match self.threads.get(&thread) {
            Some(known) if *known == vcpu => Ok(()),
            Some(known) => Err(format!(
                "thread {thread} is on vCPU {vcpu} here and on vCPU {known} before; a trace knows one of each: leave out the column `thread`"
            )),
            None if self.threads.len() == limits::THREADS => Err(format!(
                "it is of one more than {} threads, the most that a trace can tell of",
                limits::THREADS
            )),
            None => {
                self.threads.insert(thread, vcpu);
                Ok(())
            }
        }
    }

    /// Accesses to pages, so many times each. Merged with those before if they are by the same one to the same pages,
    /// unless they are writes after reads. Without a time they are as late as there were accesses before.
    fn access(
        &mut self,
        pages: PageRange,
        access: Access,
        device: Option<u8>,
        thread: u32,
        time: Option<u64>,
        repeats: u32,
    ) -> Result<(), Refused> {
        self.own_times |= time.is_some();
        let event = Event {
            device: device.map(DeviceId),
            access: Some(access),
            thread,
            repeats,
            ..Event::new(
                Duration::from_nanos(time.unwrap_or(self.accesses)),
                EventKind::Access,
                pages,
            )
        };
        let accesses = self.accesses.saturating_add(event.accesses());
        if accesses > limits::ACCESSES {
            return Err(
                format!("with it there are more than {} accesses", limits::ACCESSES).into(),
            );
        }
        self.accesses = accesses;
        if let Some(last) = &mut self.pending
            && (last.page, last.pages) == (event.page, event.pages)
            && (last.device, last.thread) == (event.device, event.thread)
            && (last.access == event.access || last.access == Some(Access::Write))
            && let Some(sum) = last.repeats.checked_add(repeats)
        {
            last.repeats = sum;
            return Ok(());
        }
        self.flush()?;
        self.take(&event);
        self.pending = Some(event);
        Ok(())
    }

    /// Pages are freed.
    fn freed(
        &mut self,
        pages: PageRange,
        device: Option<u8>,
        thread: u32,
        time: Option<u64>,
    ) -> Result<(), Refused> {
        self.own_times |= time.is_some();
        self.put(Event {
            device: device.map(DeviceId),
            thread,
            ..Event::new(
                Duration::from_nanos(time.unwrap_or(self.accesses)),
                EventKind::Freed,
                pages,
            )
        })
    }

    /// A hint about pages.
    fn hint(&mut self, pages: PageRange, hint: Hint, time: Option<u64>) -> Result<(), Refused> {
        self.own_times |= time.is_some();
        let time = Duration::from_nanos(time.unwrap_or(self.accesses));
        self.put(Event {
            hint: Some(hint),
            ..Event::new(time, EventKind::Hint, pages)
        })
    }

    fn put(&mut self, event: Event) -> Result<(), Refused> {
        self.flush()?;
        self.take(&event);
        Ok(self.writer.write(&[event])?)
    }

    /// Writes the access that waits.
    fn flush(&mut self) -> Result<(), TraceError> {
        match self.pending.take() {
            Some(event) => self.writer.write(&[event]),
            None => Ok(()),
        }
    }

    /// Takes account of a new event.
    fn take(&mut self, event: &Event) {
        self.named.add(event);
        self.events += 1;
        self.pages = self.pages.max(event.page.0 + event.pages);
        let device = event.device.map_or(0, |device| u32::from(device.0) + 1);
        self.devices = self.devices.max(device);
    }

    /// Tells the writer what is known only now.
    fn describe(&mut self) {
        let vcpus = self
            .threads
            .values()
            .max()
            .map_or(1, |vcpu| vcpu.saturating_add(1));
        let memory = addresses::whole_blocks(self.pages.into());
        self.writer.threads(std::mem::take(&mut self.threads));
        self.writer.machine(Machine {
            memory,
            vcpus,
            devices: self.devices,
        });
        self.writer.mapping(self.addresses.mapping());
        if self.own_times {
            self.writer.own_times();
        }
    }
}
